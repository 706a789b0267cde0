"""Loss and error metrics, as exact sums over images weighted by the mask."""


import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import struct

from resnet_jax.data import Batch

TOP_K = 5


@struct.dataclass
class Metrics(clu_metrics.Collection):
    """Loss and errors, as sums that merge over batches; images with mask 0 do not count.

    The sums of errors are whole numbers in float32, so they are exact up to 2**24 images and do not
    depend on the mesh or the batch size.
    """

    loss: clu_metrics.Average.from_output('loss')  # type: ignore[valid-type]
    top1_error: clu_metrics.Average.from_output('top1_error')  # type: ignore[valid-type]
    top5_error: clu_metrics.Average.from_output('top5_error')  # type: ignore[valid-type]

    @classmethod
    def of_batch(cls, logits: jax.Array, batch: Batch, losses: jax.Array) -> 'Metrics':
        """The metrics of one batch.

        Args:
          logits: float32 [N, classes].
          batch: 'label' int32 [N] and 'mask' float32 [N]; of mixed images also 'mix_label' and
            'mix_weight', see `heavier_label`.
          losses: float32 [N].
        """
        ranks = label_ranks(logits, heavier_label(batch))
        sums = cls.single_from_model_output(
            loss=losses, top1_error=(ranks >= 1).astype(jnp.float32),
            top5_error=(ranks >= TOP_K).astype(jnp.float32), mask=batch['mask'])
        # Counted in float32, as all else is summed: devices add up numbers of one type in one go.
        count = batch['mask'].sum().astype(jnp.int32)
        return sums.replace(**{name: getattr(sums, name).replace(count=count)
                               for name in ('loss', 'top1_error', 'top5_error')})

    def report(self) -> dict[str, float]:
        """Averages on the host: 'loss', 'top1_error' and 'top5_error' in percent, 'count'."""
        sums = jax.device_get(self)

        def average(metric):
            return float(np.float64(metric.total) / np.float64(metric.count))

        return {
            'loss': average(sums.loss),
            'top1_error': 100 * average(sums.top1_error),
            'top5_error': 100 * average(sums.top5_error),
            'count': round(float(sums.loss.count)),
        }


def heavier_label(batch: Batch) -> jax.Array:
    """The label that an image is to be recognised by: int32 [N].

    Of an image that mixup or CutMix made, the one with the larger weight, or its own where both
    weigh the same. In half of those images, the image's own label has the smaller weight.

    Args:
      batch: 'label' int32 [N]; of mixed images also 'mix_label' int32 [N], and 'mix_weight'
        float32 [N], the weight of 'label'.
    """
    if 'mix_label' not in batch:
        return batch['label']
    return jnp.where(batch['mix_weight'] >= 0.5, batch['label'], batch['mix_label'])


def label_ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes are ranked before the right one: int32 [N], 0 for a correct answer.

    Equal scores are ranked by class number, as argmax does; what is not a number is ranked first,
    so that a network that has diverged makes errors.
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    classes = jnp.arange(logits.shape[1])
    before = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    # The right class itself only precedes itself where its score is not a number.
    return before.sum(1, dtype=jnp.int32)


def targets(batch: Batch, classes: int, label_smoothing: float) -> jax.Array:
    """What the scores of an image should say of each class: float32 [N, classes].

    Args:
      batch: 'label' int32 [N]; of mixed images also 'mix_label' int32 [N], and 'mix_weight'
        float32 [N], the weight of 'label'.
      classes: their number.
      label_smoothing: share of the target that is spread over all classes evenly (Szegedy et al.,
        "Rethinking the Inception Architecture", 2016, section 7).
    """
    own = jax.nn.one_hot(batch['label'], classes)
    if 'mix_label' in batch:
        weight = batch['mix_weight'][:, None]
        own = weight * own + (1 - weight) * jax.nn.one_hot(batch['mix_label'], classes)
    return optax.smooth_labels(own, label_smoothing)


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """Softmax cross-entropy, float32 [N].

    Args:
      logits: float32 [N, classes].
      labels: int32 [N].
      label_smoothing: see `targets`.
    """
    return optax.softmax_cross_entropy(
        logits, targets({'label': labels}, logits.shape[1], label_smoothing))


def binary_cross_entropy(logits: jax.Array, targets: jax.Array,
                         threshold: float | None) -> jax.Array:
    """Binary cross-entropy, averaged over the classes: float32 [N].

    R. Wightman et al., "ResNet strikes back", 2021, section 3.1. Timm's loss is the same.

    Args:
      logits: float32 [N, classes].
      targets: float32 [N, classes], from 0 to 1.
      threshold: targets above it become 1, all others 0; None: they stay as they are.
    """
    if threshold is not None:
        targets = (targets > threshold).astype(logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
