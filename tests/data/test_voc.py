"""Pascal VOC: lists, XML files and images become boxes; what does not fit is named."""

import pathlib
import pickle
import re

import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.data import create_source
from resnet_jax.data.registry import count_classes
from resnet_jax.data.sources import Subset
from resnet_jax.data.voc import VOC_CLASSES
from resnet_jax.errors import UserError
from tests.data.data_helpers import encoded, photograph

HEIGHT, WIDTH = 40, 60
# Two training images and one of the evaluation: name, corners, difficult.
IMAGES = {
    'a1': [('dog', (1, 1, 60, 40), 0), ('cat', (11, 6, 20, 15), 1)],
    'a2': [('dog', (5, 5, 6, 6), 0)],
    'b1': [('emu', (2, 3, 4, 5), 0)],
}
LISTS = {'trainval': ['a1', 'a2'], 'test': ['b1']}


def xml(objects, size=(HEIGHT, WIDTH)):
    entries = ''.join(
        f'<object><name>{name}</name><part><name>head</name></part>'
        f'<difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>'
        f'<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>'
        for name, box, difficult in objects)
    return (f'<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>'
            f'{entries}</annotation>')


def write(root, images=IMAGES, lists=LISTS):
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for i, (name, objects) in enumerate(images.items()):
        (root / f'Annotations/{name}.xml').write_text(xml(objects))
        (root / f'JPEGImages/{name}.jpg').write_bytes(encoded(photograph(HEIGHT, WIDTH, i)))
    for name, lines in lists.items():
        (root / f'ImageSets/Main/{name}.txt').write_text('\n'.join(lines) + '\n')
    return root


@pytest.fixture
def voc(tmp_path):
    return write(tmp_path / 'voc')


def source(path, split='train', **changes):
    config = config_lib.default()
    config.data.source, config.data.path = 'voc', str(path)
    config.data.update(changes)
    return create_source(config, split)


def test_inclusive_pixels_from_1_become_continuous_coordinates(voc):
    data = source(voc)
    item = data[0]
    assert item.image == (voc / 'JPEGImages/a1.jpg').read_bytes()
    assert item.name == str(voc / 'JPEGImages/a1.jpg') == data.files[0]
    assert item.target['boxes'].tolist() == [[0, 0, 60, 40], [10, 5, 20, 15]]
    assert item.target['areas'].tolist() == [2400, 100]
    assert item.target['ignore'].tolist() == [False, True]
    assert [data.class_names[i] for i in item.target['classes']] == ['dog', 'cat']
    assert [data[i].target['id'] for i in (0, 1)] == [0, 1]
    assert {name: value.dtype.name for name, value in item.target.items()} == {
        'boxes': 'float32', 'classes': 'int32', 'ignore': 'bool', 'areas': 'float32',
        'id': 'int32'}
    assert (len(data), data.most_objects, data.num_classes) == (2, 2, 3)


def test_classes_are_the_twenty_of_voc_or_all_names_of_both_lists_sorted(voc):
    assert source(voc).class_names == source(voc, 'test').class_names == ('cat', 'dog', 'emu')
    config = config_lib.default()
    config.data.source, config.data.path = 'voc', str(voc)
    assert count_classes(config) == 3
    (voc / 'Annotations/b1.xml').write_text(xml([('person', (2, 3, 4, 5), 0)]))
    assert source(voc, 'test').class_names == VOC_CLASSES
    assert source(voc, 'test')[0].target['classes'] == [14]
    assert count_classes(config) == 20


def test_lists_can_be_joined_within_a_year_and_over_years(tmp_path, capsys):
    for year in ('VOC2007', 'VOC2012'):
        write(tmp_path / 'devkit' / year, lists={'train': ['a1'], 'val': ['a2  1', 'b1 -1']})
    one = source(tmp_path / 'devkit/VOC2007', train_list='train+val')
    assert [pathlib.Path(file).stem for file in one.files] == ['a1', 'a2', 'b1']
    lists = {'train_list': 'VOC2007/train+VOC2012/val', 'eval_list': 'VOC2007/val'}
    several = source(tmp_path / 'devkit', **lists)
    assert [str(pathlib.Path(file).relative_to(tmp_path)) for file in several.files] == [
        f'devkit/{file}' for file in ('VOC2007/JPEGImages/a1.jpg', 'VOC2012/JPEGImages/a2.jpg',
                                      'VOC2012/JPEGImages/b1.jpg')]
    with pytest.raises(UserError, match=r'holds VOC2007 and VOC2012: set data.train_list to lists'):
        source(tmp_path / 'devkit')
    assert len(source(tmp_path / 'devkit/VOC2007', 'test')) == 2  # val, as there is no test
    assert capsys.readouterr().err == ''


def test_images_that_are_trained_on_and_evaluated_are_reported(voc, capsys):
    assert len(source(voc, 'test', eval_list='test+trainval')) == 3
    assert capsys.readouterr().err == (
        'warning: 2 of 3 images of the evaluation are training images too; set data.train_list or '
        'data.eval_list.\n')


def test_the_fingerprint_follows_the_data_and_not_the_place(voc, tmp_path):
    first = source(voc)
    moved = voc.rename(tmp_path / 'moved')
    assert source(moved).fingerprint == first.fingerprint != source(moved, 'test').fingerprint
    (moved / 'Annotations/a2.xml').write_text(xml([('dog', (5, 5, 6, 7), 0)]))
    assert source(moved).fingerprint != first.fingerprint


def test_a_part_of_a_source_and_a_pickled_one_are_like_it(voc):
    data = source(voc)
    part = pickle.loads(pickle.dumps(Subset(data, np.array([1]))))
    assert (part.most_objects, part.num_classes, len(part)) == (2, 3, 1)
    assert not hasattr(part, 'category_ids')
    assert part[0].image == data[1].image
    np.testing.assert_equal(part[0].target, data[1].target)


def test_a_target_that_is_changed_in_place_leaves_the_source_as_it_was(voc):
    data = source(voc)
    data[0].target['boxes'][:] = 0
    assert data[0].target['boxes'].tolist() == [[0, 0, 60, 40], [10, 5, 20, 15]]


def test_boxes_of_no_area_are_refused_or_left_out(voc, capsys):
    (voc / 'Annotations/a1.xml').write_text(xml(
        [('dog', (1, 1, 60, 40), 0), ('cat', (7, 5, 7, 9), 0), ('cat', (7, 9, 9, 8), 0)]))
    with pytest.raises(UserError, match=re.escape(
            'a1.xml: object 2 (cat; xmin 7, ymin 5, xmax 7, ymax 9) has no area (one of 2 such '
            'boxes); correct the box, or pass --bad_boxes=skip (when training, '
            '--config.data.bad_boxes=skip) to leave such boxes out.')):
        source(voc)
    data = source(voc, bad_boxes='skip')
    assert [len(data.target(i)['boxes']) for i in (0, 1)] == [1, 1]
    err = capsys.readouterr().err
    assert err.startswith('warning: left out 2 boxes of no area: ') and err.count('\n') == 1


def test_a_box_may_leave_its_image_by_a_pixel_and_is_clipped(voc):
    (voc / 'Annotations/a1.xml').write_text(xml([('dog', (0, 0, 61, 41), 0)]))
    assert source(voc).target(0)['boxes'].tolist() == [[0, 0, 60, 40]]


@pytest.mark.parametrize(('file', 'content', 'sentence'), [
    ('Annotations/a1.xml', xml([('dog', (1, 1, 62, 40), 0)]),
     r'a1.xml: object 1 \(dog; xmin 1, .*\) leaves the image, which is 60 x 40 pixels, by more'),
    ('Annotations/a1.xml', xml([('dog', ('nan', 1, 9, 9), 0)]), 'object 1 .* leaves the image'),
    ('Annotations/a1.xml', xml([], (60, 40)),
     r'a1.jpg has 60 x 40 pixels, but .*a1.xml states 40 x 60: the boxes would not fit'),
    ('Annotations/a1.xml', 'a,b,c\n', r'a1.xml is cut short or not XML: .*; copy it again'),
    ('Annotations/a1.xml', xml([])[:40], 'a1.xml is cut short or not XML'),
    ('Annotations/a1.xml', xml([('dog', (1, 'one', 2, 2), 0)]),
     'a1.xml is not an annotation as in VOC: its object 1 is incomplete'),
    ('Annotations/a1.xml', '<annotation/>', 'a1.xml .*: its size is incomplete'),
    ('Annotations/a1.xml', None, 'a1.xml cannot be read: No such file .*; unpack the annotations'),
    ('JPEGImages/a2.jpg', None,
     r'trainval.txt names the image a2, which is missing in .*JPEGImages: unpack all images'),
    ('ImageSets/Main/trainval.txt', 'a1\na2\na1\n', 'names the image a1 twice; remove one'),
    ('ImageSets/Main/trainval.txt', '\n', 'trainval.txt names no images'),
    ('ImageSets/Main/trainval.txt', None, 'Main has no list trainval or train: unpack'),
])
def test_bad_input_is_named(voc, file, content, sentence):
    (voc / file).unlink()
    if content is not None:
        (voc / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        source(voc)


def test_a_dataset_without_objects_and_missing_folders_and_lists_are_named(voc, tmp_path):
    with pytest.raises(UserError, match=r"data.train_list names the list 'all', but .*all.txt is "):
        source(voc, train_list='all')
    with pytest.raises(UserError, match=r'data.path is not set; pass the folder of the dataset'):
        source('')
    with pytest.raises(UserError, match=r'data.path must be the folder .* is not a folder'):
        source(tmp_path / 'nowhere')
    for name in ('a1', 'a2'):
        (voc / f'Annotations/{name}.xml').write_text(xml([]))
    with pytest.raises(UserError, match=r'trainval.txt lists 2 images without a single object'):
        source(voc)


def test_a_damaged_image_is_left_to_the_decoder(voc):
    (voc / 'JPEGImages/a1.jpg').write_bytes(b'damaged')
    assert source(voc)[0].image == b'damaged'


def test_the_size_of_an_image_is_found_behind_a_large_colour_profile(voc):
    profile = bytes(100_000)
    (voc / 'JPEGImages/a1.jpg').write_bytes(
        encoded(photograph(WIDTH, HEIGHT), icc_profile=profile))
    with pytest.raises(UserError, match=r'a1.jpg has 40 x 60 pixels, but .* states 60 x 40'):
        source(voc)


def test_the_blood_cells_are_read_whole_but_for_two_boxes(real_data, capsys):
    folder = real_data('bccd.tar')
    with pytest.raises(UserError, match=r'BloodImage_00338.xml: object 13 \(RBC; xmin 504, .* has '
                                        'no area'):
        source(folder)
    counts, most = np.zeros(3, int), 0
    for name, images in (('train', 205), ('val', 87), ('test', 72)):
        data = source(folder, 'test', train_list='train', eval_list=name, bad_boxes='skip')
        assert (len(data), data.class_names) == (images, ('Platelets', 'RBC', 'WBC'))
        counts += np.bincount(data.objects.classes)
        most = max(most, data.most_objects)
    assert (counts.tolist(), most) == ([361, 4155 - 2, 372], 30)
    assert len(source(folder, bad_boxes='skip')) == 205 + 87  # trainval
    assert capsys.readouterr().err.count('of no area') == 3  # two in train, and one in val
