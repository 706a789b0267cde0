"""COCO's twelve numbers."""

import contextlib
import io

import numpy as np
import pytest

from resnet_jax.tasks.detection.coco_ap import NAMES, coco_ap
from resnet_jax.tasks.detection.truth import Found
from tests.tasks.detection.random_sets import found_of, objects_of, random_set


def xywh(box):
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def by_pycocotools(truth, found, num_classes):
    """(the twelve numbers, AP of each class), fractions, -1 without objects."""
    coco = pytest.importorskip('pycocotools.coco', reason='compares with pycocotools')
    cocoeval = pytest.importorskip('pycocotools.cocoeval', reason='compares with pycocotools')
    reference = coco.COCO()
    annotations = [
        {'image_id': image + 1, 'category_id': int(label) + 1, 'bbox': xywh(box),
         'iscrowd': int(ignore), 'area': float(area)}
        for image, objects in enumerate(truth)
        for box, label, ignore, area in zip(*objects[:4], strict=True)]
    reference.dataset = {
        'info': {}, 'images': [{'id': image + 1} for image in range(len(truth))],
        'categories': [{'id': label + 1} for label in range(num_classes)],
        'annotations': [{'id': number, **row} for number, row in enumerate(annotations, 1)]}
    detections = [{'image_id': image + 1, 'category_id': int(label) + 1, 'bbox': xywh(box),
                   'score': float(score)}
                  for image, row in enumerate(found)
                  for box, label, score in zip(*row[:3], strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        evaluation = cocoeval.COCOeval(reference, reference.loadRes(detections), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval['precision'][:, :, :, 0, 2].mean((0, 1))


def fractions(percent):
    return np.where(np.isnan(percent), -1, np.array(percent) / 100)


@pytest.mark.parametrize('seed', range(6))
def test_all_numbers_equal_those_of_pycocotools(seed):
    truth, found = random_set(seed)
    expected, expected_classes = by_pycocotools(truth, found, 4)
    numbers = coco_ap(truth, found, 4)
    assert (expected >= 0).all() and 0.1 < expected[0] < 0.9
    np.testing.assert_allclose(fractions([numbers[name] for name in NAMES]), expected,
                               rtol=0, atol=1e-12)
    np.testing.assert_allclose(fractions(numbers['class_ap']), expected_classes,
                               rtol=0, atol=1e-12)


def test_only_the_100_best_detections_of_a_class_and_image_count():
    right = [0, 0, 10, 10, 0, 0.1]
    wrong = [[50, 50, 60, 60, 0, 0.9]] * 100
    truth = [objects_of([[0, 0, 10, 10, 0, 0]])]
    assert coco_ap(truth, [found_of([*wrong[1:], right])], 1)['ar100'] == 100
    assert coco_ap(truth, [found_of([*wrong, right])], 1)['ar100'] == 0


def test_perfect_detections_have_100_percent():
    truth, _ = random_set(3)
    found = [Found(objects.boxes, objects.classes, np.ones(len(objects.classes), np.float32))
             for objects in truth]
    numbers = coco_ap(truth, found, 4)
    assert numbers['ap'] == numbers['ap50'] == numbers['ap75'] == pytest.approx(100, abs=1e-12)
    assert np.isnan(numbers['class_ap'][0])
    assert numbers['class_ap'][1:] == pytest.approx([100] * 3, abs=1e-12)


def test_area_bounds_decide_what_is_small_medium_and_large():
    truth = [objects_of([[0, 0, 10, 10, 0, 0], [50, 50, 90, 90, 0, 0]])]  # 100 and 1600 pixels
    found = [found_of([[0, 0, 10, 10, 0, 0.9]])]
    by_coco = coco_ap(truth, found, 1)
    assert (by_coco['ar_small'], by_coco['ar_medium']) == (100, 0)
    assert np.isnan(by_coco['ar_large'])
    by_other = coco_ap(truth, found, 1, areas=(50, 1000))
    assert np.isnan(by_other['ar_small'])
    assert (by_other['ar_medium'], by_other['ar_large']) == (100, 0)
    assert by_other['ap'] == by_coco['ap']


def test_a_crowd_is_neither_right_nor_wrong():
    crowd = [50, 50, 150, 150, 0, 1]
    truth = [objects_of([[0, 0, 10, 10, 0, 0], crowd])]
    found = [found_of([[60, 60, 80, 80, 0, 0.9], [0, 0, 10, 10, 0, 0.5]])]
    assert coco_ap(truth, found, 1)['ap'] == pytest.approx(100, abs=1e-12)
    only_crowd = coco_ap([objects_of([crowd])], found, 1)
    assert np.isnan(only_crowd['ap'])


def test_nothing_found_has_0_percent():
    truth, _ = random_set(0)
    numbers = coco_ap(truth, [found_of([])] * len(truth), 4)
    assert (numbers['ap'], numbers['ar100']) == (0, 0)


@pytest.mark.parametrize('found', [[], [found_of([])], [found_of([[0, 0, 9, 9, 1, 0.5]])]])
def test_without_objects_every_number_is_nan(found):
    numbers = coco_ap([objects_of([])] * len(found), found, 2)
    assert np.isnan([numbers[name] for name in NAMES]).all()
    assert np.isnan(numbers['class_ap']).all()


def test_nothing_is_printed(capfd):
    coco_ap(*random_set(0), 4)
    assert capfd.readouterr() == ('', '')


def test_images_without_counterpart_are_an_error():
    with pytest.raises(ValueError, match='truth has 1 images, found has 0'):
        coco_ap([objects_of([])], [], 1)
