"""Counts of what detections got wrong."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from resnet_jax.tasks.detection import overlaps
from resnet_jax.tasks.detection.truth import Found, Objects

KINDS = ('correct', 'duplicate', 'localization', 'class', 'background', 'missed')
FOREGROUND, BACKGROUND = 0.5, 0.1


def breakdown(truth: Sequence[Objects], found: Sequence[Found], *,
              least_score: float = 0.3) -> dict[str, int]:
    """Counts detections by what is right or wrong with them, and the objects that were missed.

    D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020,
    section 2.2. In order of score, each detection takes the object of its class that it overlaps
    most among those not taken, if their IoU is at least 0.5. It is then one of:

      correct: it took an object.
      localization: its best IoU with an object of its class is at least 0.1 and below 0.5.
      class: its IoU with an object of another class is at least 0.5.
      duplicate: its IoU with an object of its class is at least 0.5, but the object was taken.
      background: anything else. TIDE counts those with an IoU above 0.1 with an object of another
        class separately, as wrong in both place and class.

    The first that applies counts, in this order, which is that of TIDE's code. Objects that no
    detection took are missed; TIDE leaves out those that a localization or class error explains.

    Ignored objects are neither taken nor missed. A wrong detection is dropped if at least half of
    its area lies in an ignored object of its class.

    Args:
      truth: the objects of each image.
      found: the detections of the same images.
      least_score: detections of lower scores are left out.

    Returns:
      The number of each of `KINDS`, over all images.

    Raises:
      ValueError: if truth and found have different numbers of images.
    """
    counts: Counter[str] = Counter()
    for objects, detections in zip(truth, found, strict=True):
        counts.update(_kinds(objects, detections, least_score))
    return {kind: counts[kind] for kind in KINDS}


def _kinds(objects: Objects, found: Found, least_score: float):
    """The kind of every detection and missed object of one image."""
    order = np.argsort(-found.scores, kind='stable')
    order = order[found.scores[order] >= least_score]
    boxes, classes = found.boxes[order], found.classes[order]
    real = ~objects.ignore
    iou = overlaps.iou(boxes, objects.boxes[real])
    same = classes[:, None] == objects.classes[real]
    ignored = ((overlaps.ioa(boxes, objects.boxes[~real]) >= FOREGROUND)
               & (classes[:, None] == objects.classes[~real])).any(1)
    own = np.where(same, iou, 0)
    taken = _take(own)
    correct = taken >= 0
    best_own = own.max(1, initial=0)
    best_other = np.where(same, 0, iou).max(1, initial=0)
    kinds = np.select(
        [correct, (best_own >= BACKGROUND) & (best_own < FOREGROUND), best_other >= FOREGROUND,
         best_own >= FOREGROUND],
        ['correct', 'localization', 'class', 'duplicate'], 'background')
    num_missed = int(real.sum() - correct.sum())
    return [*kinds[correct | ~ignored].tolist(), *['missed'] * num_missed]


def _take(iou):
    """Which object each detection takes: int [m], -1 for none.

    Args:
      iou: float64 [m, n], 0 for pairs of different classes; the detections are in order of score.
    """
    taken = np.full(len(iou), -1)
    if not iou.size:
        return taken
    free = np.ones(iou.shape[1], bool)
    for i in np.flatnonzero(iou.max(1) >= FOREGROUND):
        best = np.argmax(np.where(free, iou[i], -1))
        if free[best] and iou[i, best] >= FOREGROUND:
            taken[i], free[best] = best, False
    return taken
