"""The same algorithms in plain NumPy and Python loops, one box at a time."""

import math

import numpy as np


def overlap(a, b, one=0.0):
    """Areas of a, of b, and of their intersection."""
    def area(x1, y1, x2, y2):
        return max(x2 - x1 + one, 0) * max(y2 - y1 + one, 0)

    return area(*a), area(*b), area(max(a[0], b[0]), max(a[1], b[1]),
                                    min(a[2], b[2]), min(a[3], b[3]))


def iou(a, b, one=0.0):
    area_a, area_b, inter = overlap(a, b, one)
    union = area_a + area_b - inter
    return inter / union if union > 0 else 0.0


def greedy(boxes, scores, valid, threshold, number, classes=None, before=None, one=0):
    """Indices that sequential greedy suppression keeps, in order.

    Args:
      boxes: integers below 2048, so that float32 areas are exact and so are comparisons.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float32).T
    area = np.maximum(x2 - x1 + one, 0) * np.maximum(y2 - y1 + one, 0)
    kept, alive = [], np.array(valid)
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i))[:before]:
        if not alive[i] or len(kept) == number:
            continue
        kept.append(i)
        inter = (np.maximum(np.minimum(x2, x2[i]) - np.maximum(x1, x1[i]) + one, 0)
                 * np.maximum(np.minimum(y2, y2[i]) - np.maximum(y1, y1[i]) + one, 0))
        union = area + area[i] - inter
        suppressed = inter / np.where(union > 0, union, 1) > np.float32(threshold)
        if classes is not None:
            suppressed &= np.asarray(classes) == classes[i]
        alive &= ~suppressed
    return kept


def interpolate(features, y, x):
    """Bilinear interpolation of [H, W, C] at one point, as detectron2 and torchvision define it."""
    H, W, _ = features.shape
    if not (-1 <= y <= H and -1 <= x <= W):
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, H - 1), min(j + 1, W - 1)
    dy, dx = y - i, x - j
    return ((1 - dy) * (1 - dx) * features[i, j] + (1 - dy) * dx * features[i, m]
            + dy * (1 - dx) * features[k, j] + dy * dx * features[k, m])


def roi_align(features, boxes, bins, scale, points, aligned):
    """[R, bins, bins, C] in float64 from [H, W, C] and [R, 4]."""
    features = np.asarray(features, np.float64)
    result = np.zeros((len(boxes), bins, bins, features.shape[2]))
    for r, box in enumerate(np.asarray(boxes, np.float64) * scale - 0.5 * aligned):
        width, height = box[2] - box[0], box[3] - box[1]
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        nx, ny = (points or max(math.ceil(side / bins), 0) for side in (width, height))
        for p in range(bins):
            for q in range(bins):
                values = [interpolate(features, box[1] + (p + (i + 0.5) / ny) * height / bins,
                                      box[0] + (q + (j + 0.5) / nx) * width / bins)
                          for i in range(ny) for j in range(nx)]
                if values:
                    result[r, p, q] = np.mean(values, axis=0)
    return result
