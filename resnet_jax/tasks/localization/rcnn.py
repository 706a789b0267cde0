"""What the R-CNN of localization is trained on, and the boxes that it finds (appendix C).

Training is "RoI-centric": the regions of a step are of different images, one of each, drawn from
its proposals of the true class. The paper gives neither the overlaps that make a region positive
nor the share of positives; these are R-CNN's threshold and, if there are both, one in two.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.data import Batch
from resnet_jax.models import localizer_rcnn as models
from resnet_jax.models.localizer import Found, within
from resnet_jax.models.localizer_rcnn import LocalizerRCNN
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.matching import match
from resnet_jax.regions.sampling import sample
from resnet_jax.tasks.detection.losses import smooth_l1

POSITIVE = 0.5  # IoU from which a region is positive; others are negative
BETA = 1.0  # where the smooth L1 loss becomes linear: that of Fast R-CNN


def draw(proposals: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Draws a region of every image from its proposals.

    Args:
      proposals: float32 [N, P, 4].
      batch: 'boxes' float32 [N, G, 4], 'present' bool [N, G], and 'draws', the data of a random key
        for each image.

    Returns:
      'region' float32 [N, 4]; 'box' float32 [N, 4], the box of the object that it overlaps most
      with; 'positive' bool [N]; and 'trained' bool [N], False for images without a box.
    """
    number = proposals.shape[1]
    index, label = match(boxes_lib.iou(proposals, batch['boxes']), batch['present'], POSITIVE,
                         (0.0, POSITIVE))
    keys = jax.random.wrap_key_data(batch['draws'])
    drawn = sample(keys, label, 2, 0.5)  # a positive and a negative, where there are both
    both = drawn.positive.any(1) & drawn.negative.any(1)
    coin = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
    second = (both & coin).astype(jnp.int32)[:, None]

    def pick(rows, index):
        return (rows * jax.nn.one_hot(index, rows.shape[1], dtype=rows.dtype)[..., None]).sum(1)

    chosen = jnp.take_along_axis(drawn.index, second, 1)[:, 0]
    matched = (index * jax.nn.one_hot(chosen, number, dtype=index.dtype)).sum(1)
    return {'region': pick(proposals, chosen), 'box': pick(batch['boxes'], matched),
            'positive': jnp.take_along_axis(drawn.positive, second, 1)[:, 0],
            'trained': batch['present'].any(1)}


def region_losses(scores: jax.Array, deltas: jax.Array,
                  drawn: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The losses of the drawn regions, for the true class.

    Args:
      scores, deltas: float32 [N] and [N, 4], see `LocalizerRCNN.judge`.
      drawn: see `draw`.

    Returns:
      The binary cross-entropy of the scores, and the smooth L1 loss of the boxes of positives:
      float32 [N] each.
    """
    positive = drawn['positive']
    score = optax.sigmoid_binary_cross_entropy(scores, positive.astype(scores.dtype))
    targets = models.encode(drawn['box'], drawn['region'])
    box = smooth_l1(deltas - targets, BETA).sum(-1)
    return (jnp.where(drawn['trained'], score, 0),
            jnp.where(drawn['trained'] & positive, box, 0))


def judged(model: LocalizerRCNN, variables: Any, images: jax.Array, features: jax.Array,
           classes: jax.Array, frames: jax.Array) -> Found:
    """The box of each class that the second network finds best, corrected by it.

    Args:
      model, variables: the network.
      images: float [N, H, W, C], normalised.
      features: the last feature map of the first network.
      classes: int32 [N, T].
      frames: float32 [N, 4]: where the image lies on the input; boxes are clipped to it.
    """
    count, times = classes.shape
    proposals: Any = model.apply(variables, features, classes, frames, method='propose')

    def judge(regions):  # float32 [N, T, 4], the proposals of one rank
        crops = models.warp(images, regions, model.settings.crop_size)
        outputs: Any = model.apply(variables, crops.reshape(-1, *crops.shape[2:]),
                                   classes.reshape(-1), train=False, method='judge')
        scores, deltas = outputs
        return (scores.reshape(count, times),
                models.decode(deltas.reshape(count, times, 4), regions))

    scores, boxes = jax.lax.map(judge, jnp.moveaxis(proposals, 2, 0))
    best = jnp.argmax(scores, 0)[None]
    boxes = jnp.take_along_axis(boxes, best[..., None], 0)[0]
    return Found(within(boxes, frames), jnp.take_along_axis(scores, best, 0)[0])


def replaced(found: Found, classes: jax.Array, better: Found) -> Found:
    """The boxes of all classes, where those of some are replaced.

    Args:
      found: of K classes, [N, K].
      classes: int32 [N, T].
      better: of these classes, [N, T].
    """
    def replace(old, new):
        new = new.reshape(*classes.shape, -1)
        own = jax.nn.one_hot(classes, old.shape[1], dtype=new.dtype)
        exact = jax.lax.Precision.HIGHEST
        put = jnp.einsum('ntk,ntc->nkc', own, new, precision=exact).reshape(old.shape)
        chosen = own.any(1).reshape(*old.shape[:2], *(1,) * (old.ndim - 2))
        return jnp.where(chosen, put, old)

    return Found(replace(found.boxes, better.boxes), replace(found.scores, better.scores))
