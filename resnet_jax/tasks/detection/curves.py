"""Precision and recall of detections, by PASCAL VOC's matching."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.tasks.detection import overlaps
from resnet_jax.tasks.detection.truth import Found, Objects


def precision_recall(truth: Sequence[Objects], found: Sequence[Found], num_classes: int,
                     iou: float = 0.5) -> list[tuple[np.ndarray, np.ndarray]]:
    """The precision-recall curve of every class.

    A detection is right if the object of its class that it overlaps most, by at least `iou`, was
    not found by a detection of higher score. Detections whose object is ignored do not count.
    Detections with equal scores are ranked in the order of the images, then in their own order.
    VOCevaldet.m of the PASCAL VOC devkit does the same; COCO's evaluation would try the object
    overlapped second most, and measures the overlap with a crowd by another rule.

    Args:
      truth: the objects of each image.
      found: the detections of the same images.
      num_classes: classes are numbered from 0 to num_classes - 1.
      iou: the least intersection over union of a detection with its object.

    Returns:
      (recall, precision) per class, both float64 [k]: element i is over the i + 1 detections of the
      highest scores. Recall is NaN for a class without objects.

    Raises:
      ValueError: if truth and found have different numbers of images.
    """
    judged = [_judge(objects, detections, iou)
              for objects, detections in zip(truth, found, strict=True)]
    columns: Any = list(zip(*judged, strict=True)) or ([], [], [])
    classes, scores, right = (np.concatenate(parts) if parts else np.zeros(0) for parts in columns)
    curves = []
    for label, count in enumerate(count_objects(truth, num_classes)):
        own = classes == label
        order = np.argsort(-scores[own], kind='stable')
        num_right = np.cumsum(right[own][order], dtype=np.float64)
        recall = num_right / count if count else np.full_like(num_right, np.nan)
        curves.append((recall, num_right / np.arange(1, len(num_right) + 1)))
    return curves


def count_objects(truth: Sequence[Objects], num_classes: int) -> np.ndarray:
    """The number of objects of every class that are not ignored: int64 [num_classes]."""
    counts = np.zeros(num_classes, np.int64)
    for objects in truth:
        counts += np.bincount(objects.classes[~objects.ignore], minlength=num_classes)
    return counts


def _judge(objects: Objects, found: Found, iou: float):
    """(classes, scores, right) of the detections of one image that count, highest score first."""
    order = np.argsort(-found.scores, kind='stable')
    boxes, classes, scores = (values[order] for values in found[:3])
    right = np.zeros(len(scores), bool)
    if not len(objects.classes):
        return classes, scores, right
    overlap = np.where(classes[:, None] == objects.classes, overlaps.iou(boxes, objects.boxes), -1)
    nearest = overlap.argmax(1)
    hit = np.flatnonzero(overlap.max(1) >= iou)
    _, first = np.unique(nearest[hit], return_index=True)
    right[hit[first]] = True
    counts = np.ones(len(scores), bool)
    counts[hit] = ~objects.ignore[nearest[hit]]
    return classes[counts], scores[counts], right[counts]
