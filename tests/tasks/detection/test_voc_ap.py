"""PASCAL VOC's average precision, and the curves below it."""

import math

import numpy as np
import pytest

from resnet_jax.tasks.detection.curves import precision_recall
from resnet_jax.tasks.detection.truth import Found
from resnet_jax.tasks.detection.voc_ap import voc_ap
from tests.tasks.detection.random_sets import found_of, objects_of, random_set


def xml_coordinates(box):
    x1, y1, x2, y2 = map(float, box)
    return x1 + 1, y1 + 1, x2, y2


def devkit_overlap(bb, bbgt):
    iw = min(bb[2], bbgt[2]) - max(bb[0], bbgt[0]) + 1
    ih = min(bb[3], bbgt[3]) - max(bb[1], bbgt[1]) + 1
    if iw <= 0 or ih <= 0:
        return -math.inf
    ua = ((bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
          + (bbgt[2] - bbgt[0] + 1) * (bbgt[3] - bbgt[1] + 1) - iw * ih)
    return iw * ih / ua


def devkit_ap(truth, found, label, rule):
    """The procedure of VOCevaldet.m for one class, in plain loops over XML coordinates."""
    gt, npos = [], 0
    for objects in truth:
        own = [i for i in range(len(objects.classes)) if objects.classes[i] == label]
        gt.append([{'bb': xml_coordinates(objects.boxes[i]), 'diff': bool(objects.ignore[i]),
                    'det': False} for i in own])
        npos += sum(not objects.ignore[i] for i in own)
    lines = [(float(score), image, xml_coordinates(box))
             for image, detections in enumerate(found)
             for box, own, score in zip(*detections[:3], strict=True) if own == label]
    lines.sort(key=lambda line: -line[0])
    if npos == 0:
        return math.nan
    tp = fp = 0
    rec, prec = [], []
    for _, image, bb in lines:
        ovmax, jmax = -math.inf, None
        for j, entry in enumerate(gt[image]):
            ov = devkit_overlap(bb, entry['bb'])
            if ov > ovmax:
                ovmax, jmax = ov, j
        if ovmax >= 0.5:
            entry = gt[image][jmax]
            if not entry['diff']:
                if entry['det']:
                    fp += 1
                else:
                    tp, entry['det'] = tp + 1, True
        else:
            fp += 1
        rec.append(tp / npos)
        prec.append(tp / (fp + tp) if fp + tp else 0)
    if rule == 'voc07':
        ap = 0
        for t in (0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1):
            ap += max([p for r, p in zip(rec, prec, strict=True) if r >= t], default=0) / 11
        return ap
    mrec, mpre = [0, *rec, 1], [0, *prec, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


@pytest.mark.parametrize('rule', ['voc07', 'voc12'])
def test_equals_the_devkits_procedure(rule):
    for seed in range(20):
        truth, found = random_set(seed, num_images=10)
        expected = [devkit_ap(truth, found, label, rule) for label in range(4)]
        result = voc_ap(truth, found, 4, rule)
        np.testing.assert_allclose(np.array(result['class_ap']) / 100, expected, rtol=0, atol=1e-12)
        assert result['ap50'] / 100 == pytest.approx(np.nanmean(expected), abs=1e-12)
        assert math.isnan(expected[0]) and 0.1 < result['ap50'] / 100 < 0.95


def test_a_case_by_hand():
    # Right, wrong, right; one of three objects is not found: recalls 1/3, 1/3 and 2/3, precisions
    # 1, 1/2 and 2/3.
    truth = [objects_of([[0, 0, 10, 10, 0, 0], [20, 20, 40, 40, 0, 0], [60, 0, 70, 9, 0, 0]])]
    found = [found_of([[0, 0, 10, 10, 0, 0.9], [80, 80, 90, 90, 0, 0.8], [20, 20, 40, 39, 0, 0.7]])]
    (recall, precision), = precision_recall(truth, found, 1)
    assert recall.tolist() == [1 / 3, 1 / 3, 2 / 3]
    assert precision.tolist() == [1, 1 / 2, 2 / 3]
    # Recalls 0, 0.1, 0.2 and 0.3 have precision 1; 0.4, 0.5 and 0.6 have 2/3; four have 0.
    assert voc_ap(truth, found, 1, 'voc07')['ap50'] == pytest.approx(100 * 6 / 11)
    assert voc_ap(truth, found, 1, 'voc12')['ap50'] == pytest.approx(100 * (1 + 2 / 3) / 3)


def test_a_half_counts_the_pixels_of_inclusive_coordinates():
    # XML (1, 1, 10, 10) and (1, 1, 10, 5): 50 of 100 pixels. Differences alone would give 4/9.
    truth = [objects_of([[0, 0, 10, 10, 0, 0]])]
    assert voc_ap(truth, [found_of([[0, 0, 10, 5, 0, 1]])], 1, 'voc12')['ap50'] == 100
    assert voc_ap(truth, [found_of([[0, 0, 10, 4.99, 0, 1]])], 1, 'voc12')['ap50'] == 0


def test_an_object_is_found_once_and_its_second_detection_is_wrong():
    truth = [objects_of([[0, 0, 10, 10, 0, 0], [50, 50, 60, 60, 0, 0]])]
    found = [found_of([[0, 0, 10, 9, 0, 0.9], [0, 0, 10, 10, 0, 0.8], [50, 50, 60, 60, 0, 0.7]])]
    (recall, precision), = precision_recall(truth, found, 1)
    assert recall.tolist() == [0.5, 0.5, 1]
    assert precision.tolist() == [1, 0.5, 2 / 3]


def test_detections_of_difficult_objects_do_not_count():
    truth = [objects_of([[0, 0, 10, 10, 0, 1], [50, 50, 60, 60, 0, 0]])]
    found = [found_of([[0, 0, 10, 10, 0, 0.9], [0, 0, 10, 9, 0, 0.8], [50, 50, 60, 60, 0, 0.7]])]
    assert voc_ap(truth, found, 1, 'voc07') == {'ap50': pytest.approx(100),
                                                'class_ap': [pytest.approx(100)]}
    only_difficult = [Found(*(values[:2] for values in found[0][:3]))]
    assert voc_ap(truth, only_difficult, 1, 'voc12')['ap50'] == 0


def test_equal_scores_are_ranked_in_the_order_of_the_detections():
    truth = [objects_of([[0, 0, 10, 10, 0, 0]]), objects_of([])]
    right, wrong = found_of([[0, 0, 10, 10, 0, 0.5]]), found_of([[0, 0, 10, 10, 0, 0.5]])
    assert voc_ap(truth, [right, wrong], 1, 'voc12')['ap50'] == 100
    assert voc_ap(truth[::-1], [wrong, right], 1, 'voc12')['ap50'] == 50


def test_the_curve_takes_other_ious():
    truth = [objects_of([[0, 0, 10, 10, 0, 0]])]
    found = [found_of([[0, 0, 10, 7, 0, 1]])]
    assert precision_recall(truth, found, 1, iou=0.7)[0][1].tolist() == [1]
    assert precision_recall(truth, found, 1, iou=0.75)[0][1].tolist() == [0]


def test_classes_without_objects_are_nan_and_leave_the_mean_alone():
    truth = [objects_of([[0, 0, 10, 10, 1, 0]])]
    found = [found_of([[0, 0, 10, 10, 1, 0.5], [0, 0, 10, 10, 0, 0.9]])]
    result = voc_ap(truth, found, 3, 'voc12')
    assert result['ap50'] == result['class_ap'][1] == 100
    assert np.isnan(result['class_ap']).tolist() == [True, False, True]
    recall, precision = precision_recall(truth, found, 3)[0]
    assert np.isnan(recall).tolist() == [True] and precision.tolist() == [0]


@pytest.mark.parametrize('number', [0, 2])
def test_without_objects_and_detections_every_number_is_nan(number):
    result = voc_ap([objects_of([])] * number, [found_of([])] * number, 2, 'voc07')
    assert np.isnan([result['ap50'], *result['class_ap']]).all()


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match=r"rule='voc10' must be one of \['voc07', 'voc12'\]"):
        voc_ap([], [], 1, 'voc10')
