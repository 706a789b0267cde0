"""Assigns ground truth to anchors and proposals."""

import jax
import jax.numpy as jnp

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1


def match(iou: jax.Array, present: jax.Array, positive: float, negative: tuple[float, float], *,
          best_of_each: bool = False,
          valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Finds the best ground truth of every candidate, and labels the candidate by their overlap.

    S. Ren et al., "Faster R-CNN", 2015, section 3.1.2: positive is 0.7 and negative (0, 0.3) for
    anchors, with `best_of_each`; 0.5 and (0, 0.5) for proposals, or (0.1, 0.5) in the paper's code.

    Args:
      iou: float [..., A, G], overlaps of candidates with ground truth, from `boxes.iou`. G is at
        least 1.
      present: bool [..., G], which ground truth may match: neither padding nor to be ignored.
      positive: least overlap of a positive candidate.
      negative: overlaps of negatives: from the first to below the second. A candidate without any
        ground truth has overlap 0.
      best_of_each: whether the candidates that overlap most with a ground truth, all of them if
        several tie, are positive whatever their overlap, unless it is 0. They still match the
        ground truth that they themselves overlap most with.
      valid: bool [..., A] or None, which candidates take part; the others are neither positive nor
        negative. Such are padding, and in the paper's code anchors across the edge.

    Returns:
      index: int32 [..., A], the ground truth with the largest overlap, the first if several tie; 0
        where there is none.
      label: int32 [..., A], POSITIVE, NEGATIVE or NEITHER.
    """
    iou = jnp.where(present[..., None, :], iou, 0)
    if valid is not None:
        iou = jnp.where(valid[..., None], iou, 0)
    overlap = jnp.max(iou, axis=-1)
    is_positive = overlap >= positive
    if best_of_each:
        best = jnp.max(iou, axis=-2, keepdims=True)
        is_positive |= jnp.any((iou == best) & (iou > 0), axis=-1)
    is_negative = (overlap >= negative[0]) & (overlap < negative[1])
    label = jnp.where(is_positive, POSITIVE, jnp.where(is_negative, NEGATIVE, NEITHER))
    if valid is not None:
        label = jnp.where(valid, label, NEITHER)
    return jnp.argmax(iou, axis=-1).astype(jnp.int32), label.astype(jnp.int32)


def exempt(label: jax.Array, ioa: jax.Array, ignored: jax.Array,
           threshold: float = 0.7) -> jax.Array:
    """Makes negatives inside of ignored regions neither positive nor negative.

    A crowd contains objects without boxes of their own, so what lies in it is not background. The
    threshold is py-faster-rcnn's.

    Args:
      label: int32 [..., A], from `match`.
      ioa: float [..., A, G], the share of each candidate that lies in each box, from `boxes.ioa`.
      ignored: bool [..., G], which boxes are crowds or otherwise ignored.
      threshold: least share.

    Returns:
      int32 [..., A].
    """
    lies_within = jnp.any((ioa >= threshold) & ignored[..., None, :], axis=-1)
    return jnp.where(lies_within & (label == NEGATIVE), NEITHER, label)
