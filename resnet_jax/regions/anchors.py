"""Anchors: boxes of fixed sizes and shapes at every position of a feature map."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def base_anchors(sizes: Sequence[float], ratios: Sequence[float],
                 rule: str = 'detectron2') -> np.ndarray:
    """The anchors of the first position. Networks trained with one rule do not work with another.

    Args:
      sizes: square roots of the areas, in pixels: 32, 64, 128, 256, 512 for COCO in detectron2; in
        the paper, 128, 256, 512 for VOC and 64 in addition for COCO.
      ratios: height / width, such as 0.5, 1, 2.
      rule:
        'detectron2': centred at 0 and not rounded; all ratios of the first size come first.
        'torchvision': centred at 0 and rounded to whole pixels; all sizes of the first ratio come
        first.
        'paper': as in py-faster-rcnn. The sides of a box of 16x16 pixels are rounded for each ratio
        and then scaled; centred at 7.5; all sizes of the first ratio come first; both ends belong
        to the box (`plus_one`).

    Returns:
      float32 [len(sizes) * len(ratios), 4], in pixels of the image.
    """
    scales, shapes = np.asarray(sizes, np.float64), np.asarray(ratios, np.float64)
    width: np.ndarray
    if rule == 'detectron2':
        size, ratio = (x.ravel() for x in np.meshgrid(scales, shapes, indexing='ij'))
        width = size / np.sqrt(ratio)
        return _centred(width, width * ratio)
    ratio, size = (x.ravel() for x in np.meshgrid(shapes, scales, indexing='ij'))
    if rule == 'torchvision':
        # In float32, as there, in case a number lies so close to a half that it decides rounding.
        height = np.sqrt(ratio.astype(np.float32))
        width = 1 / height
        return np.round(_centred(width * size.astype(np.float32), height * size.astype(np.float32)))
    if rule == 'paper':
        width = np.round(np.sqrt(16 * 16 / ratio))
        scale = size / 16
        anchors = _centred(width * scale - 1, np.round(width * ratio) * scale - 1)
        return anchors + np.float32(7.5)
    raise ValueError(f"rule must be 'detectron2', 'torchvision' or 'paper', not {rule!r}")


def grid(base: jax.Array | np.ndarray, height: int, width: int, stride: int) -> jax.Array:
    """Anchors of all positions of a feature map.

    Args:
      base: float [A, 4], from `base_anchors`, in pixels of the image.
      height: of the feature map, in positions.
      width: of the feature map.
      stride: pixels of the image between positions.

    Returns:
      float32 [height * width * A, 4], in pixels: by rows, then columns, then base anchors, which is
      the order of the scores of a convolution, [height, width, A], in memory.
    """
    y, x = (stride * jnp.arange(n, dtype=jnp.float32) for n in (height, width))
    shifts = jnp.stack(jnp.broadcast_arrays(x, y[:, None]) * 2, -1)
    return (shifts[:, :, None] + jnp.asarray(base, jnp.float32)).reshape(-1, 4)


def _centred(width, height) -> np.ndarray:
    return (np.stack([-width, -height, width, height], -1) / 2).astype(np.float32)
