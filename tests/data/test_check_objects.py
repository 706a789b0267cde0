"""What is wrong with the boxes of a dataset is reported in one pass, with counts and sizes."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from resnet_jax.data import check
from resnet_jax.data.scenes import ObjectArrays
from resnet_jax.data.types import Item
from tests.data import test_voc
from tests.data.data_helpers import encoded, photograph
from tests.data.test_voc import xml


@pytest.fixture
def voc(tmp_path):
    return test_voc.write(tmp_path / 'voc')


def checked(**changes):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**changes):
        check.main([])


def test_check_reports_objects_by_class_and_their_sizes(voc, capsys):
    checked(source='voc', path=str(voc), json='true')
    report = json.loads(capsys.readouterr().out)['train']
    assert (report['objects'], report['ignored'], report['most_objects']) == (3, 1, 2)
    assert report['objects_per_class'] == {
        'cat': {'objects': 1, 'ignored': 1, 'images': 1},
        'dog': {'objects': 2, 'ignored': 0, 'images': 2},
        'emu': {'objects': 0, 'ignored': 0, 'images': 0}}
    assert (report['box_width']['0%'], report['box_width']['100%']) == (2, 60)
    assert report['box_height']['50%'] == 10
    assert report['images_without_objects'] == 0 and 'images_per_class' not in report
    checked(source='voc', path=str(voc), splits='train')
    out = capsys.readouterr().out
    assert 'train: class  objects  ignored  images\ntrain: cat          1        1       1\n' in out
    assert 'train: no area: 0\n' in out


def test_check_names_all_bad_boxes_and_fails(voc, capsys):
    (voc / 'Annotations/a1.xml').write_text(xml(
        [('dog', (7, 5, 7, 9), 0), ('cat', (1, 1, 62, 40), 0), ('cat', (7, 9, 9, 8), 0),
         ('cat', (1, 1, 5, 5), 0), ('cat', (1, 1, 5, 5), 0), ('dog', (1, 1, 5, 5), 0)]))
    options = {'source': 'voc', 'path': str(voc), 'splits': 'train', 'json': 'true'}
    with pytest.raises(SystemExit):
        checked(**options)
    report = json.loads(capsys.readouterr().out)['train']
    name = f'{voc}/Annotations/a1.xml'
    assert report['no_area'] == [
        f'{name}: object 1 (dog; xmin 7, ymin 5, xmax 7, ymax 9)',
        f'{name}: object 3 (cat; xmin 7, ymin 9, xmax 9, ymax 8)']
    assert report['outside'] == [f'{name}: object 2 (cat; xmin 1, ymin 1, xmax 62, ymax 40)']
    assert report['duplicated'] == [
        f'{voc}/JPEGImages/a1.jpg: object 1 (cat; 0, 0, 5, 5), 2 times']
    assert report['objects'] == 4
    (voc / 'Annotations/a1.xml').write_text(xml([('dog', (7, 5, 7, 9), 0)]))
    checked(**options, bad_boxes='skip')
    assert json.loads(capsys.readouterr().out)['train']['images_without_objects'] == 1


def test_check_finds_bad_boxes_of_any_source(capsys):
    class Wrong:
        fingerprint, num_classes, class_names, most_objects = 'wrong', 2, ('a', 'b'), 2

        def __len__(self):
            return 1

        def __getitem__(self, index):
            boxes = np.array([[0, 0, 32, 20], [5, 5, 5, 9], [np.nan, 0, 1, 1]], np.float32)
            return Item(encoded(photograph(20, 30)), {
                'boxes': boxes, 'classes': np.array([0, 1, 1]), 'ignore': np.zeros(3, bool),
                'areas': np.ones(3, np.float32), 'id': np.int32(0)}, 'x')

    report = check.check(Wrong(), 1)
    assert report['outside'] == ['x: object 1 (a; 0, 0, 32, 20)', 'x: object 3 (b; nan, 0, 1, 1)']
    assert report['no_area'] == ['x: object 2 (b; 5, 5, 5, 9)']


def test_a_long_list_of_bad_boxes_is_cut_in_the_text():
    box = np.array([[1, 1, 1, 1]], np.float32)
    source = ObjectArrays([np.zeros((8, 8, 1), np.uint8)] * 30, [box] * 30,
                          [np.zeros(1, np.int32)] * 30, 'x', ['a'])
    text = list(check.lines(check.check(source, 1)))
    assert sum(line.startswith('no area: x/') for line in text) == 20
    assert text[text.index('no area: …') + 1] == 'no area: 30'


def test_check_reports_the_two_blood_cells_without_area(real_data, capsys):
    with pytest.raises(SystemExit):
        checked(source='voc', path=str(real_data('bccd.tar')), train_list='train+val',
                splits='train', json='true')
    report = json.loads(capsys.readouterr().out)['train']
    assert sorted(x.split('Annotations/')[1].split(' (')[0] for x in report['no_area']) == [
        'BloodImage_00338.xml: object 13', 'BloodImage_00343.xml: object 4']
    assert (report['images'], report['objects']) == (292, 3941)
    assert report['objects_per_class']['WBC'] == {'objects': 301, 'ignored': 0, 'images': 290}
