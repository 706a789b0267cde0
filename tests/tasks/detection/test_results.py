"""Files of detections."""

import json

import numpy as np
import pytest

from resnet_jax.tasks.detection import results
from resnet_jax.tasks.detection.results import write_coco, write_voc
from resnet_jax.tasks.detection.truth import Found
from tests.tasks.detection.random_sets import found_of, random_set

FOUND = [found_of([[0, 0, 10, 20, 1, 0.5], [1.00051, 2, 4.25, 6, 0, 0.1234567]]), found_of([])]


def test_coco_results_have_the_numbers_of_the_data_set(tmp_path):
    write_coco(tmp_path / 'results.json', [139, 285], FOUND, [1, 90])
    assert json.loads((tmp_path / 'results.json').read_text()) == [
        {'image_id': 139, 'category_id': 90, 'bbox': [0, 0, 10, 20], 'score': 0.5},
        {'image_id': 139, 'category_id': 1, 'bbox': [1.001, 2, 3.249, 4], 'score': 0.12346}]


def test_coco_results_read_back_as_the_detections(tmp_path):
    _, found = random_set(0)
    ids = [7 * i + 3 for i in range(len(found))]
    categories = [1, 2, 13, 90]
    write_coco(tmp_path / 'results.json', ids, found, categories)
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert len(rows) == sum(len(image.scores) for image in found) > 0
    for image_id, image in zip(ids, found, strict=True):
        own = [row for row in rows if row['image_id'] == image_id]
        boxes = np.array([row['bbox'] for row in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, image.boxes, atol=1e-3)
        np.testing.assert_allclose([row['score'] for row in own], image.scores, atol=1e-5)
        assert [categories.index(row['category_id']) for row in own] == image.classes.tolist()


def test_voc_results_count_pixels_from_1_and_include_the_last(tmp_path):
    write_voc(tmp_path / 'Main', 'test', ['cat', 'dog', 'sheep'], ['000001', '000002'], FOUND)
    assert {path.name: path.read_text() for path in (tmp_path / 'Main').iterdir()} == {
        'comp4_det_test_cat.txt': '000001 0.12346 2.001 3.000 4.250 6.000\n',
        'comp4_det_test_dog.txt': '000001 0.50000 1.000 1.000 10.000 20.000\n',
        'comp4_det_test_sheep.txt': ''}


def failing_replace(source, target):
    raise OSError('the disk is full')


@pytest.mark.parametrize('write', [
    lambda folder: write_coco(folder / 'old', [1, 2], FOUND, [1, 2]),
    lambda folder: write_voc(folder, 'val', ['cat', 'dog'], ['1', '2'], FOUND)])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    for name in ('old', 'comp4_det_val_cat.txt', 'comp4_det_val_dog.txt'):
        (tmp_path / name).write_text('old')
    monkeypatch.setattr(results.os, 'replace', failing_replace)
    with pytest.raises(OSError, match='the disk is full'):
        write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ('old', 'comp4_det_val_cat.txt', 'comp4_det_val_dog.txt'), 'old')


def test_numbers_that_json_lacks_are_an_error_and_leave_the_old_file(tmp_path):
    (tmp_path / 'old').write_text('old')
    diverged = Found(np.full((1, 4), np.nan, np.float32), np.zeros(1, np.int32),
                     np.ones(1, np.float32))
    with pytest.raises(ValueError):
        write_coco(tmp_path / 'old', [1], [diverged], [1])
    assert (tmp_path / 'old').read_text() == 'old'
