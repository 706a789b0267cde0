"""Multi-task network cascades: the class of a region is read from the features under its mask.

J. Dai, K. He, J. Sun, "Instance-aware Semantic Segmentation via Multi-task Network Cascades", 2015,
which won COCO's segmentation of 2015. Stage 1 proposes boxes, stage 2 gives each box a mask that
has no class, and stage 3 classifies and corrects it by its masked features, joined with all of its
features. Stages 4 and 5 are 2 and 3 again, with the same weights, from the corrected boxes.
"""

import jax

from resnet_jax.regions import boxes as boxes_lib


def masked(maps: jax.Array, scores: jax.Array) -> jax.Array:
    """Features of regions times the probabilities of their masks (section 3.3, eq. 4).

    Args:
      maps: [N, R, h, w, channels].
      scores: float [N, R, k * h, l * w], before the sigmoid, for whole numbers k and l. Each
        position of the maps has the mean probability of its k x l cells.

    Returns:
      As maps. Gradients reach both.
    """
    N, R, h, w, _ = maps.shape
    cells = jax.nn.sigmoid(scores).reshape(N, R, h, -1, w, scores.shape[-1] // w)
    return maps * cells.mean((3, 5))[..., None].astype(maps.dtype)


def corrected(scores: jax.Array, deltas: jax.Array, regions: jax.Array, sizes: jax.Array,
              weights: tuple[float, float, float, float]) -> jax.Array:
    """The box of each region's most probable class, background aside.

    Gradients reach the deltas and the regions (section 3.4). Scales are limited whatever the
    detector's `clip_scales`, as an infinite box would have a gradient that is NaN.

    Args:
      scores: float32 [N, R, classes + 1], see `FasterRCNN.heads`.
      deltas: float32 [N, R, classes, 4].
      regions: float32 [N, R, 4], in pixels of the input.
      sizes: int32 [N, 2], height and width of each image on the input.
      weights: see `boxes.decode`.

    Returns:
      float32 [N, R, 4], within the images.
    """
    # One-hot, as the gradient of a gather would be a scatter.
    best = jax.nn.one_hot(scores[..., :-1].argmax(-1), deltas.shape[2], dtype=deltas.dtype)
    own = (deltas * best[..., None]).sum(2)
    return boxes_lib.clip(boxes_lib.decode(own, regions, weights), sizes)
