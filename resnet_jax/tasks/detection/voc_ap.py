"""PASCAL VOC's average precision."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.tasks.detection import curves
from resnet_jax.tasks.detection.truth import Found, Objects

LEAST_IOU = 0.5
# MATLAB's 0:0.1:1, which counts from both ends. The fourth is slightly more than 0.3, so a recall
# of 3/10 does not reach it.
RECALLS = np.concatenate([np.arange(5) * 0.1, [0.5], 1 - np.arange(5)[::-1] * 0.1])


def voc_ap(truth: Sequence[Objects], found: Sequence[Found], num_classes: int,
           rule: str) -> dict[str, float | list[float]]:
    """Average precision at an IoU of 0.5, in percent, as VOCevaldet.m of VOC's devkit computes it.

    The devkit adds 1 to the differences of coordinates, because those of the XML files are indices
    of pixels and include the last one. `Objects` has continuous coordinates, whose differences are
    those widths and heights already, so the overlaps are the same.

    M. Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, section 4.2, and
    the devkit document of VOC 2012, section 3.4.1.

    Args:
      truth: the objects of each image; the ignored ones are VOC's difficult objects.
      found: the detections of the same images.
      num_classes: classes are numbered from 0 to num_classes - 1.
      rule: 'voc07', the mean of the best precisions at 11 recalls, or 'voc12', the area under the
        precision made monotonic.

    Returns:
      'ap50', the mean over classes with objects, and 'class_ap', one number per class. Classes
      without objects are NaN, as is the mean over none. A class whose detections all hit difficult
      objects has 0, where the devkit divides 0 by 0.

    Raises:
      ValueError: if the rule is another, or if truth and found have different numbers of images.
    """
    if rule not in RULES:
        raise ValueError(f'rule={rule!r} must be one of {sorted(RULES)}')
    counts = curves.count_objects(truth, num_classes)
    class_curves = curves.precision_recall(truth, found, num_classes, LEAST_IOU)
    class_ap = [100 * RULES[rule](*curve) if count else np.nan
                for count, curve in zip(counts, class_curves, strict=True)]
    present = [ap for ap, count in zip(class_ap, counts, strict=True) if count]
    return {'ap50': float(np.mean(present)) if present else np.nan, 'class_ap': class_ap}


def _mean_at_recalls(recall, precision) -> float:
    best = [precision[recall >= least].max(initial=0) for least in RECALLS]
    return float(sum(best) / len(RECALLS))


def _area_under_envelope(recall, precision) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())


RULES = {'voc07': _mean_at_recalls, 'voc12': _area_under_envelope}
