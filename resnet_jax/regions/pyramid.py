"""RoIAlign on several levels of features, of which each region has one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.regions.boxes import area, as_float
from resnet_jax.regions.roi_align import roi_align


def level_of(boxes: jax.Array, count: int, *, side: float = 224, level: int = 2) -> jax.Array:
    """The level on which a region is pooled: one coarser for twice the side.

    T.-Y. Lin et al., "Feature Pyramid Networks", 2017, eq. 1, with torchvision's rounding.

    Args:
      boxes: float [..., 4], in pixels.
      count: number of levels.
      side: square root of the area of a region for `level`.
      level: counted from 0.

    Returns:
      int32 [...], from 0 to count - 1.
    """
    ratio = jnp.sqrt(area(boxes)) / side
    return jnp.clip(jnp.floor(level + jnp.log2(ratio) + 1e-6), 0, count - 1).astype(jnp.int32)


def roi_align_levels(maps: Sequence[jax.Array], boxes: jax.Array, levels: jax.Array, *,
                     scales: tuple[float, ...], bins: int, points: int = 2, aligned: bool = True,
                     gathered: bool = False) -> jax.Array:
    """`roi_align` of every region on its own level.

    Args:
      maps: float [N, H, W, C] of each level.
      boxes: float [N, R, 4], in pixels of the image.
      levels: int [N, R], from 0.
      scales: positions of the features per pixel, for each level.
      bins, points, aligned: see `roi_align`.
      gathered: read the features at the sampling points, which is much faster; otherwise multiply
        all levels by interpolation matrices, so that the gradient needs no scatter. With
        `points=0` they are always multiplied.

    Returns:
      [N, R, bins, bins, C], as maps.
    """
    if gathered and points:
        return _gathered(maps, boxes, levels, scales, bins, points, aligned)
    pooled: Any = 0
    for number, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        own = (levels == number)[..., None, None, None]
        pooled += jnp.where(own, roi_align(
            features, boxes, bins=bins, scale=scale, points=points, aligned=aligned), 0)
    return pooled


def _gathered(maps, boxes, levels, scales, bins, points, aligned):
    N, C, dtype = len(maps[0]), maps[0].shape[-1], maps[0].dtype
    flat = jnp.concatenate([x.reshape(N, -1, C) for x in maps], 1)
    heights, widths = ([x.shape[axis] for x in maps] for axis in (1, 2))
    starts = np.cumsum([0, *(h * w for h, w in zip(heights, widths, strict=True))])[:-1]
    scale, height, width, start = (
        jnp.asarray(values)[levels] for values in (np.float32(scales), heights, widths, starts))
    boxes = as_float(boxes) * scale[..., None]
    rows = _taps(boxes[..., 1], boxes[..., 3], height, bins, points, aligned)
    columns = _taps(boxes[..., 0], boxes[..., 2], width, bins, points, aligned)

    # The compiler turns the sum into a single loop over the output.
    pooled = jnp.zeros((*levels.shape, bins, bins, C), jnp.promote_types(dtype, jnp.float32))
    for y, y_share in rows:
        y = start[..., None] + y * width[..., None]
        for x, x_share in columns:
            values = jax.vmap(lambda flat, place: flat[place])(
                flat, y[..., :, None] + x[..., None, :])
            pooled += values * (y_share[..., :, None] * x_share[..., None, :])[..., None]
    return pooled.astype(dtype)


def _taps(start, end, size, bins: int, points: int, aligned: bool) -> list:
    """What each bin of intervals averages: `axis_weights`, without the zeros.

    Args:
      start, end: float [...], in positions of the features.
      size: int [...], the number of positions.
      bins, points, aligned: see `axis_weights`.

    Returns:
      2 * points pairs of a position, int32 [..., bins], and its weight, float [..., bins].
    """
    start, end, size = start[..., None], end[..., None], size[..., None]
    if aligned:
        start, end = start - 0.5, end - 0.5
    length = end - start
    if not aligned:
        length = jnp.maximum(length, 1)
    length /= bins
    taps = []
    for point in range(points):
        place = start + (jnp.arange(bins) + (point + 0.5) / points) * length
        share = jnp.where((place >= -1) & (place <= size), 1 / points, 0)
        place = jnp.clip(place, 0, size - 1)
        below = jnp.floor(place)
        above, first = place - below, below.astype(jnp.int32)
        taps += [(first, share * (1 - above)),
                 (jnp.minimum(first + 1, size - 1), share * above)]
    return taps
