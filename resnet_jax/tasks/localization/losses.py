"""The losses of a localizer, per image and normalised by constants (appendix C).

Anchors are trained for the true class alone: as many positives as negatives, 8 of an image. Where
there are fewer positives, there are more negatives, as in Faster R-CNN. The overlaps that make an
anchor positive or negative are not given in the paper.
"""

import jax
import jax.numpy as jnp
import optax

from resnet_jax.data import Batch
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.matching import NEITHER, match
from resnet_jax.regions.sampling import Sample, masks, sample
from resnet_jax.tasks.detection.losses import smooth_l1

POSITIVE, NEGATIVE = 0.5, 0.3  # IoU from which an anchor is positive, below which negative
POSITIVES = 0.5  # their share
BETA = 1 / 9  # where the smooth L1 loss becomes linear


def draw(number: int, anchors: jax.Array, batch: Batch) -> tuple[Sample, jax.Array]:
    """Draws the anchors of every image that are trained.

    Args:
      number: of anchors of an image.
      anchors: float32 [A, 4].
      batch: 'boxes' float32 [N, G, 4], 'present' bool [N, G], and 'draws', the data of a random key
        for each image.

    Returns:
      The sample, empty for images without a box; and the index of the box that each anchor is
      matched with, int32 [N, A].
    """
    index, label = match(boxes_lib.iou(anchors, batch['boxes']), batch['present'], POSITIVE,
                         (0.0, NEGATIVE), best_of_each=True)
    label = jnp.where(batch['present'].any(-1, keepdims=True), label, NEITHER)
    return sample(jax.random.wrap_key_data(batch['draws']), label, number, POSITIVES), index


def anchor_losses(number: int, scores: jax.Array, deltas: jax.Array, anchors: jax.Array,
                  drawn: Sample, index: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The losses of the drawn anchors, for the true class.

    Args:
      number: of anchors of an image that are drawn.
      scores, deltas: [N, A] and [N, A, 4], of the true class; see `localizer.Siblings`.
      anchors: float32 [A, 4].
      drawn, index: see `draw`.
      boxes: float32 [N, G, 4], of the objects.

    Returns:
      The binary cross-entropy of the scores, and the smooth L1 loss of the boxes of positives:
      float32 [N] each.
    """
    positive, negative = masks(drawn, scores.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(scores, positive.astype(scores.dtype))
    score = jnp.where(positive | negative, losses, 0).sum(1)
    targets = boxes_lib.encode(jnp.take_along_axis(boxes, index[..., None], 1), anchors)
    box = jnp.where(positive, smooth_l1(deltas - targets, BETA).sum(-1), 0).sum(1)
    return score / number, box / number
