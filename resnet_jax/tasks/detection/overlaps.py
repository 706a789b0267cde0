"""Overlaps of boxes in float64, so that scores equal those of the reference evaluators."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: float64 [m, n], 0 where the union has no area.

    Args:
      a, b: [m, 4] and [n, 4], (x1, y1, x2, y2) in continuous pixels; an inverted box has no area.
    """
    shared = _intersection(a, b)
    return _ratio(shared, _area(a)[:, None] + _area(b)[None] - shared)


def ioa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection of every pair over the area of a: float64 [m, n], 0 where a has no area.

    Args:
      a, b: as for `iou`.
    """
    return _ratio(_intersection(a, b), _area(a)[:, None])


def _intersection(a, b):
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return sides.clip(0).prod(-1)


def _area(boxes):
    boxes = np.asarray(boxes, np.float64)
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1)


def _ratio(part, whole):
    return np.where(whole > 0, part, 0) / np.where(whole > 0, whole, 1)
