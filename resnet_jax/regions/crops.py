"""Masks of objects, stored as crops relative to their boxes."""

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.regions.boxes import as_float


def mask_targets(crops: jax.Array, boxes: jax.Array, regions: jax.Array, size: int) -> jax.Array:
    """The share of every cell of a region that an object covers.

    The exact mean of the crop over each cell: the product with two matrices of overlaps. Outside of
    the object's box it is 0. These are the targets of the mask branch.

    Args:
      crops: uint8 or float [..., R, M, M], from 0 to 1: the object of each region on a grid of
        M x M cells over its box.
      boxes: float [..., R, 4], in pixels: the boxes of these objects.
      regions: float [..., R, 4], in pixels.
      size: number of cells of a region in each direction, such as 14 or 28.

    Returns:
      float [..., R, size, size], at least float32; 0 where the box or region has no area.
    """
    boxes, regions = as_float(boxes), as_float(regions)

    def weights(axis):
        cells = crops.shape[-1 - axis]
        start, side = boxes[..., axis], boxes[..., axis + 2] - boxes[..., axis]
        per_pixel = jnp.where(side > 0, cells / jnp.where(side > 0, side, 1), 0)
        first, last = ((regions[..., i] - start) * per_pixel for i in (axis, axis + 2))
        return _overlaps(first, last, cells, size)

    return jnp.einsum('...ih,...hw,...jw->...ij', weights(1), crops.astype(boxes.dtype), weights(0),
                      precision=lax.Precision.HIGHEST)


def _overlaps(start, end, cells: int, size: int):
    """Shares of each of `size` equal parts of intervals in `cells` cells of length 1.

    Args:
      start: float [...].
      end: float [...].

    Returns:
      float [..., size, cells]; 0 for an interval of no length.
    """
    start, end = start[..., None, None], end[..., None, None]
    length = (end - start) / size
    edges = start + jnp.arange(size + 1, dtype=start.dtype)[:, None] * length
    cell = jnp.arange(cells, dtype=start.dtype)
    overlap = jnp.minimum(edges[..., 1:, :], cell + 1) - jnp.maximum(edges[..., :-1, :], cell)
    positive = length > 0
    return jnp.where(positive, jnp.maximum(overlap, 0), 0) / jnp.where(positive, length, 1)
