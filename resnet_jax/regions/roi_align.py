"""RoIAlign as products with two interpolation matrices, so that its gradient needs no scatter."""

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.regions.boxes import as_float

HIGHEST = lax.Precision.HIGHEST  # float32 features are not rounded to bfloat16 or TF32
CHUNK = 16  # regions at a time; see docs/performance.md
MAX_POINTS = 8  # in a bin and direction; enough for regions of 1792 pixels in 14 bins at stride 16


def roi_align(features: jax.Array, boxes: jax.Array, *, bins: int, scale: float, points: int = 2,
              aligned: bool = True, step: int = 1, chunk: int = CHUNK) -> jax.Array:
    """Average features in a grid of bins over every region.

    K. He et al., "Mask R-CNN", 2017, section 3, as in detectron2 and torchvision: bilinear
    interpolation at a regular grid of points, averaged over each bin. A point up to one position
    outside of the feature map has the value of the edge; beyond, it is 0.

    A region of no area gives the features at one point, or 0 with `points=0` and `aligned=True`.
    All gradients are finite; that of the features is summed in float32.

    Args:
      features: float [N, H, W, C].
      boxes: float [N, R, 4], in pixels of the image.
      bins: number of bins in each direction, P.
      scale: positions of the feature map per pixel, such as 1/16.
      points: sampling points in a bin and direction; 0: as many as the bin has positions, rounded
        up and at most MAX_POINTS.
      aligned: whether position i of the features lies at i + 0.5, as a pixel does (detectron2's
        'ROIAlignV2'). If not, it lies at i, and regions are at least one position wide and high.
      step: distance between the bins that are computed, in both directions. With 2, a 1x1
        convolution of stride 2 that follows can have stride 1 instead.
      chunk: number of regions of each image to compute at a time; it bounds the memory.

    Returns:
      [N, R, ceil(P / step), ceil(P / step), C], as features.
    """
    boxes = as_float(boxes) * scale
    dtype, (N, R) = features.dtype, boxes.shape[:2]
    chunk = max(1, min(chunk, R))
    chunks = -(-R // chunk)

    def weights(axis):  # [chunks, N, chunk, P, H or W]
        x = axis_weights(boxes[..., axis], boxes[..., axis + 2], features.shape[2 - axis], bins,
                         points=points, aligned=aligned)[..., ::step, :].astype(dtype)
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - R), (0, 0), (0, 0)))
        return x.reshape(N, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    # As float32, so that the gradients of the chunks are added in float32.
    wide = as_float(features)

    def pool(weights):
        x, y = weights
        columns = jnp.einsum('nrqw,nhwc->nrqhc', x, wide.astype(dtype), precision=HIGHEST)
        return jnp.einsum('nrph,nrqhc->nrpqc', y, columns, precision=HIGHEST)

    pooled = lax.map(pool, (weights(0), weights(1))).swapaxes(0, 1)
    return pooled.reshape(N, chunks * chunk, *pooled.shape[3:])[:, :R]


def axis_weights(start: jax.Array, end: jax.Array, size: int, bins: int, *, points: int = 2,
                 aligned: bool = True) -> jax.Array:
    """Matrices that average a row of features over the bins of intervals.

    Args:
      start: float [...], where the interval begins, in positions of the features.
      end: float [...].
      size: number of positions.
      bins: number of bins, P.
      points: as in `roi_align`.
      aligned: as in `roi_align`.

    Returns:
      float [..., P, size], at least float32. Each row sums to 1, or less if points lie outside.
    """
    start, end = (as_float(x)[..., None, None] for x in (start, end))
    dtype = start.dtype
    if aligned:
        start, end = start - 0.5, end - 0.5
    length = end - start
    if not aligned:
        length = jnp.maximum(length, 1)
    if points:
        number = jnp.asarray(points, dtype)
    else:
        number = jnp.clip(jnp.ceil(length / bins), 0, MAX_POINTS)
    point = jnp.arange(points or MAX_POINTS, dtype=dtype)
    used = point < number
    number = jnp.maximum(number, 1)
    bin_size = length / bins
    bin_start = start + jnp.arange(bins, dtype=dtype)[:, None] * bin_size
    place = bin_start + (point + 0.5) * bin_size / number  # [..., P, points]
    used &= (place >= -1) & (place <= size)
    place = jnp.clip(place, 0, size - 1)[..., None]
    hat = jnp.maximum(0, 1 - jnp.abs(place - jnp.arange(size, dtype=dtype)))
    return jnp.sum(jnp.where(used[..., None], hat, 0), axis=-2) / number
