"""Areas, overlaps, coding and clipping of boxes."""

import math

import jax
import jax.numpy as jnp

# Largest log of a scale that decoding applies: a box of 16 pixels grows to at most 1000
# (detectron2, torchvision).
MAX_LOG_SCALE = math.log(1000 / 16)


def sides(boxes: jax.Array, plus_one: bool = False) -> jax.Array:
    """Widths and heights, which are negative where a box is inverted.

    Args:
      boxes: float [..., 4], in pixels.
      plus_one: whether both ends belong to the box, see `resnet_jax.regions`.

    Returns:
      float [..., 2]: width and height in pixels.
    """
    boxes = as_float(boxes)
    return boxes[..., 2:] - boxes[..., :2] + float(plus_one)


def area(boxes: jax.Array, plus_one: bool = False) -> jax.Array:
    """Areas; an inverted box has none.

    Args:
      boxes: float [..., 4], in pixels.
      plus_one: as in `sides`.

    Returns:
      float [...], in square pixels.
    """
    width_height = jnp.maximum(sides(boxes, plus_one), 0)
    return width_height[..., 0] * width_height[..., 1]


def iou(a: jax.Array, b: jax.Array, plus_one: bool = False) -> jax.Array:
    """Intersection over union of every pair; 0 where the union has no area or is not finite.

    Args:
      a: float [..., A, 4], in pixels.
      b: float [..., B, 4].
      plus_one: as in `sides`.

    Returns:
      float [..., A, B], from 0 to 1, at least float32.
    """
    inter = _intersection(a, b, plus_one)
    union = area(a, plus_one)[..., :, None] + area(b, plus_one)[..., None, :] - inter
    return _ratio(inter, union)


def ioa(a: jax.Array, b: jax.Array, plus_one: bool = False) -> jax.Array:
    """Intersection of every pair over the area of a: how much of a lies in b.

    COCO measures the overlap with a crowd this way, because a crowd's box contains many objects.

    Args:
      a: float [..., A, 4], in pixels.
      b: float [..., B, 4].
      plus_one: as in `sides`.

    Returns:
      float [..., A, B], from 0 to 1; 0 where a has no area.
    """
    return _ratio(_intersection(a, b, plus_one), area(a, plus_one)[..., :, None])


def encode(boxes: jax.Array, anchors: jax.Array,
           weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
           plus_one: bool = False) -> jax.Array:
    """Codes boxes relative to anchors: shifts of the centre and logs of scales, times weights.

    The regression targets of R. Girshick et al., "Rich feature hierarchies", 2014, appendix C, and
    S. Ren et al., "Faster R-CNN", 2015, eq. 2. Where a side of the box or the anchor is not
    positive the code is 0, so that nothing becomes NaN.

    Args:
      boxes: float [..., 4], in pixels.
      anchors: float [..., 4]; broadcast with boxes.
      weights: of dx, dy, dw and dh: 10, 10, 5 and 5 for the second stage of detectron2, torchvision
        and, as the reciprocals of standard deviations, py-faster-rcnn.
      plus_one: as in `sides`.

    Returns:
      float [..., 4]: dx, dy, dw, dh.
    """
    (size, centre), (anchor_size, anchor_centre) = (
        _size_and_centre(x, plus_one) for x in (boxes, anchors))
    positive = (size > 0) & (anchor_size > 0)
    size, anchor_size = (jnp.where(positive, x, 1) for x in (size, anchor_size))
    shift = jnp.where(positive, (centre - anchor_centre) / anchor_size, 0)
    return jnp.concatenate([shift, jnp.log(size / anchor_size)], -1) * jnp.asarray(
        weights, shift.dtype)


def decode(deltas: jax.Array, anchors: jax.Array,
           weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
           max_log_scale: float | None = MAX_LOG_SCALE, plus_one: bool = False) -> jax.Array:
    """Boxes from codes: the inverse of `encode`.

    With `plus_one` it is the exact inverse, as in the paper's MATLAB code. py-faster-rcnn returns
    x2 and y2 one pixel larger.

    Args:
      deltas: float [..., 4]: dx, dy, dw, dh.
      anchors: float [..., 4], in pixels; broadcast with deltas. Boxes for each class: deltas
        [..., R, classes, 4] with anchors [..., R, 1, 4].
      weights: as in `encode`.
      max_log_scale: upper limit of the logs of scales, or None, as in the paper's code.
      plus_one: as in `sides`.

    Returns:
      float [..., 4], in pixels, at least float32.
    """
    deltas = as_float(deltas)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    size, centre = _size_and_centre(anchors, plus_one)
    scale = deltas[..., 2:]
    if max_log_scale is not None:
        scale = jnp.minimum(scale, max_log_scale)
    centre = centre + deltas[..., :2] * size
    half = (size * jnp.exp(scale) - float(plus_one)) / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(boxes: jax.Array, size: jax.Array, plus_one: bool = False) -> jax.Array:
    """Moves coordinates outside of the image to its edge.

    Args:
      boxes: float [..., 4], in pixels.
      size: int or float [..., 2]: height and width of each image. Its batch axes are the first axes
        of boxes.
      plus_one: whether the last coordinates are width - 1 and height - 1.

    Returns:
      float [..., 4].
    """
    boxes = as_float(boxes)
    return jnp.clip(boxes, 0, _corner(size, boxes.ndim, plus_one).astype(boxes.dtype))


def inside(boxes: jax.Array, size: jax.Array, plus_one: bool = False) -> jax.Array:
    """Whether boxes lie within their image; the paper's code trains no other anchors.

    Args:
      boxes: float [..., 4], in pixels; or [A, 4], shared by all images.
      size: int or float [..., 2]: height and width of each image. Its batch axes are the first axes
        of boxes, if these have any.
      plus_one: as in `clip`.

    Returns:
      bool [...]: the batch axes of size and the other axes of boxes.
    """
    size = jnp.asarray(size)
    corner = _corner(size, max(jnp.ndim(boxes), size.ndim + 1), plus_one)
    return jnp.all((boxes >= 0) & (boxes <= corner), axis=-1)


def as_float(x: jax.Array) -> jax.Array:
    """x as float32, or in its own type if that is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _size_and_centre(boxes, plus_one):
    boxes = as_float(boxes)
    return sides(boxes, plus_one), (boxes[..., :2] + boxes[..., 2:]) / 2


def _intersection(a, b, plus_one):
    a, b = as_float(a)[..., :, None, :], as_float(b)[..., None, :, :]

    def overlap(i):  # along x, y; one number for each pair at a time, which compiles to fast loops
        length = jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i])
        return jnp.maximum(length + float(plus_one), 0)

    return overlap(0) * overlap(1)


def _ratio(part, whole):
    positive = whole > 0  # not for NaN either
    return jnp.where(positive, part, 0) / jnp.where(positive, whole, 1)


def _corner(size, ndim: int, plus_one: bool):
    """(width, height, width, height) of the last pixel, with as many axes as boxes have."""
    size = jnp.asarray(size) - int(plus_one)
    size = size.reshape(*size.shape[:-1], *(1,) * (ndim - size.ndim), 2)
    return jnp.concatenate([size[..., ::-1]] * 2, -1)
