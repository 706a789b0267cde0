"""Non-maximum suppression, exactly as the sequential greedy algorithm, and voting."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.regions import boxes as boxes_lib

BLOCK = 256  # boxes that are settled at once; see docs/performance.md


class Kept(NamedTuple):
    """What is left, in order of decreasing score, then padding.

    Attributes:
      index: int32 [..., number], 0 for padding.
      valid: bool [..., number].
    """

    index: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name
    valid: jax.Array


def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, threshold: float, number: int, *,
        before: int | None = None, classes: jax.Array | None = None, plus_one: bool = False,
        block: int = BLOCK) -> Kept:
    """Greedy non-maximum suppression: keeps a box unless a kept box of higher score overlaps it.

    Boxes with equal scores count in the order of their indices. Boxes are processed in blocks in
    order of score, until enough are kept. What earlier blocks suppress is dropped at once; then the
    greedy rule is applied to all boxes of the block until nothing changes. This takes a few rounds
    for proposals of a network, and at most `block` rounds, for a chain of boxes that each overlap
    only the next one. No gradient passes through the choice.

    Under `jit` over a mesh, the conditions of the loops concern all devices, which costs an
    all-reduce in every round. Under `jax.shard_map` over the images every device loops on its own.

    Args:
      boxes: float [..., n, 4], in pixels; n is at least 1.
      scores: float [..., n].
      valid: bool [..., n], which boxes take part. Those whose coordinates or score are not finite
        never do.
      threshold: of IoU; a box is suppressed if it overlaps more.
      number: how many boxes to keep at most.
      before: if given, only this many boxes with the highest scores are considered.
      classes: int [..., n] or None; boxes of different classes do not suppress each other.
      plus_one: see `resnet_jax.regions`.
      block: number of boxes in a block; it does not change the result.

    Returns:
      Kept.
    """
    boxes = boxes_lib.as_float(boxes)
    valid = valid & jnp.isfinite(scores) & jnp.all(jnp.isfinite(boxes), axis=-1)
    if classes is None:
        classes = jnp.zeros(scores.shape, jnp.int32)
    before = min(before or scores.shape[-1], scores.shape[-1])
    one = functools.partial(_nms, threshold=threshold, number=number, before=before,
                            plus_one=plus_one, block=max(1, min(block, before)))
    for _ in scores.shape[:-1]:
        one = jax.vmap(one)
    return one(boxes, scores, valid, classes)


def nms_by_class(boxes: jax.Array, scores: jax.Array, valid: jax.Array, threshold: float,
                 number: int, *, least_score: float, before: int | None = None,
                 plus_one: bool = False) -> Kept:
    """Suppression within each class, as for detections: the best of all classes are kept.

    Args:
      boxes: float [..., R, K, 4] in pixels, a box of every region for each of K classes; or
        [..., R, 1, 4] for all of them.
      scores: float [..., R, K].
      valid: bool [..., R], which regions take part.
      threshold: as in `nms`.
      number: as in `nms`, of all classes together.
      least_score: only higher scores take part.
      before: as in `nms`, of all classes together.
      plus_one: as in `nms`.

    Returns:
      Kept, with `index` counting regions and classes: region * K + class.
    """
    batch, (regions, classes) = scores.shape[:-2], scores.shape[-2:]

    def flat(x, *shape):
        return jnp.broadcast_to(x, (*batch, regions, classes, *shape)).reshape(
            *batch, regions * classes, *shape)

    valid = valid[..., None] & (scores > least_score)
    return nms(flat(boxes, 4), flat(scores), flat(valid), threshold, number, before=before,
               classes=flat(jnp.arange(classes)), plus_one=plus_one)


def vote(kept: jax.Array, boxes: jax.Array, scores: jax.Array, valid: jax.Array,
         threshold: float = 0.5, plus_one: bool = False) -> jax.Array:
    """Box voting: replaces kept boxes by means of the boxes around them, weighted by score.

    S. Gidaris and N. Komodakis, "Object detection via a multi-region and semantic
    segmentation-aware CNN model", 2015; appendix B of the paper uses it with box refinement.

    Args:
      kept: float [..., k, 4], in pixels.
      boxes: float [..., m, 4], all boxes of the same class before suppression.
      scores: float [..., m]; a negative score counts as 0.
      valid: bool [..., m], which boxes vote.
      threshold: least IoU of a box that votes.
      plus_one: see `resnet_jax.regions`.

    Returns:
      float [..., k, 4]; a box that none votes for stays as it is.
    """
    votes = jnp.where(valid, jnp.maximum(scores, 0), 0)[..., None, :] * (
        boxes_lib.iou(kept, boxes, plus_one) >= threshold)
    total = jnp.sum(votes, axis=-1, keepdims=True)
    boxes = jnp.where(valid[..., None], boxes, 0)
    mean = jnp.matmul(votes, boxes, precision=lax.Precision.HIGHEST)
    return jnp.where(total > 0, mean / jnp.where(total > 0, total, 1), kept)


def _nms(boxes, scores, valid, classes, *, threshold, number, before, plus_one, block) -> Kept:
    """`nms` for one image."""
    _, order = lax.top_k(jnp.where(valid, scores, -jnp.inf), before)
    order = jnp.pad(order, (0, -before % block))
    valid = valid[order] & (lax.iota(jnp.int32, order.size) < before)
    end = jnp.sum(valid, dtype=jnp.int32)  # valid boxes come first
    # x1, y1, x2, y2, class by rows. On CPU, sums along rows of overlaps are much faster than along
    # columns.
    boxes = jnp.concatenate([boxes.T, classes[None].astype(boxes.dtype)])[:, order]

    def overlap(a, b):
        more = boxes_lib.iou(a[:4].T, b[:4].T, plus_one) > threshold
        return (more & (a[4][:, None] == b[4])).astype(jnp.float32)

    def next_block(state):
        start, place, earlier, count = state
        b = lax.dynamic_slice_in_dim(boxes, start, block, axis=1)
        candidates = lax.dynamic_slice_in_dim(valid, start, block)
        if order.size > block:
            kept = (lax.iota(jnp.int32, number) < count).astype(jnp.float32)
            candidates &= ~(overlap(b, earlier) @ kept > 0)
        kept = _settle(jnp.tril(overlap(b, b), -1), candidates)
        slot = jnp.where(kept, count + jnp.cumsum(kept, dtype=jnp.int32) - 1, number)
        place = place.at[slot].set(start + lax.iota(jnp.int32, block), mode='drop')
        earlier = earlier.at[:, slot].set(b, mode='drop')
        return start + block, place, earlier, count + jnp.sum(kept, dtype=jnp.int32)

    start = (jnp.int32(0), jnp.zeros(number, jnp.int32), jnp.zeros((5, number), boxes.dtype),
             jnp.int32(0))
    _, place, _, count = lax.while_loop(
        lambda state: (state[0] < end) & (state[3] < number), next_block, start)
    kept = lax.iota(jnp.int32, number) < count
    return Kept(jnp.where(kept, order[place], 0), kept)


def _settle(suppressed_by, candidates):
    """Which candidates are kept: those that no kept one suppresses.

    Args:
      suppressed_by: float32 [n, n], 1 where box i is suppressed by box j < i, if that is kept;
        otherwise 0.
      candidates: bool [n].
    """
    def settle(state):
        kept, _ = state
        new = candidates & ~(suppressed_by @ kept.astype(jnp.float32) > 0)
        return new, jnp.any(new != kept)

    return lax.while_loop(lambda state: state[1], settle, (candidates, jnp.any(candidates)))[0]
