"""COCO: a JSON file and images become boxes; what does not fit is named."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.data import create_source
from resnet_jax.data.registry import count_classes
from resnet_jax.data.sources import Subset
from resnet_jax.errors import UserError
from tests.data.data_helpers import encoded, photograph
from tests.printed import ROOT

HEIGHT, WIDTH = 40, 60
TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))


def content(split='train'):
    """Two images, the second of which has no object; the categories stand out of order."""
    names = ('7.jpg', '5.jpg') if split == 'train' else ('9.jpg',)
    first = int(names[0][0])
    return {
        'info': {},
        'images': [{'id': int(name[0]), 'file_name': name, 'height': HEIGHT, 'width': WIDTH}
                   for name in names],
        'annotations': [
            {'id': 1, 'image_id': first, 'category_id': 90, 'bbox': [10.5, 5, 20, 15.25],
             'area': 123.5, 'iscrowd': 0, 'segmentation': [[1, 2, 3, 4, 5, 6]]},
            {'id': 2, 'image_id': first, 'category_id': 3, 'bbox': [0, 0, 60, 40], 'area': 7,
             'iscrowd': 1, 'segmentation': {'counts': [1], 'size': [40, 60]}}],
        'categories': [{'id': 90, 'name': 'brush'}, {'id': 3, 'name': 'car', 'supercategory': 'x'}],
    }


def write(root):
    (root / 'annotations').mkdir(parents=True)
    for split, file in (('train', TRAIN), ('val', VAL)):
        (root / file).write_text(json.dumps(content(split)))
        (root / f'{split}2017').mkdir()
        for i, image in enumerate(content(split)['images']):
            (root / f'{split}2017' / image['file_name']).write_bytes(
                encoded(photograph(HEIGHT, WIDTH, i)))
    return root


@pytest.fixture
def coco(tmp_path):
    return write(tmp_path / 'coco')


def config_of(path, **changes):
    config = config_lib.default()
    config.data.source, config.data.path = 'coco', str(path)
    config.data.update(changes)
    return config


def source(path, split='train', **changes):
    return create_source(config_of(path, **changes), split)


def test_corner_and_size_become_two_corners_and_categories_are_numbered_by_id(coco):
    data = source(coco)
    item = data[0]
    assert item.image == (coco / 'train2017/7.jpg').read_bytes()
    assert item.name == str(coco / 'train2017/7.jpg') == data.files[0]
    assert item.target['boxes'].tolist() == [[10.5, 5, 30.5, 20.25], [0, 0, 60, 40]]
    assert item.target['classes'].tolist() == [1, 0]
    assert item.target['ignore'].tolist() == [False, True]
    assert item.target['areas'].tolist() == [123.5, 7]
    assert [data[i].target['id'] for i in (0, 1)] == [7, 5]
    assert {name: value.dtype.name for name, value in item.target.items()} == {
        'boxes': 'float32', 'classes': 'int32', 'ignore': 'bool', 'areas': 'float32',
        'id': 'int32'}
    assert data.class_names == ('car', 'brush') and data.category_ids.tolist() == [3, 90]
    assert (len(data), data.most_objects, data.num_classes) == (2, 2, 2)
    assert count_classes(config_of(coco)) == 2


def test_an_image_without_objects_has_a_target_of_none(coco):
    target = source(coco)[1].target
    assert target['boxes'].shape == (0, 4) and target['classes'].shape == (0,)


def test_images_may_lie_in_three_folders_and_lists_elsewhere(coco):
    assert source(coco, 'test').files == [str(coco / 'val2017/9.jpg')]
    (coco / 'images').mkdir()
    (coco / 'val2017').rename(coco / 'images/val2017')
    assert source(coco, 'test').files == [str(coco / 'images/val2017/9.jpg')]
    shutil.move(coco / 'images/val2017/9.jpg', coco / 'images/9.jpg')
    (coco / VAL).rename(coco / 'mine.json')
    assert source(coco, 'test', eval_list='mine.json').files == [str(coco / 'images/9.jpg')]


def test_a_copy_with_all_90_categories_is_made_as_the_document_says(coco, monkeypatch):
    block, = re.findall(r'^```python\n(import json\n.*?)^```$',
                        (ROOT / 'docs' / 'detection.md').read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(coco / 'annotations')
    exec(block, {})
    lists = dict.fromkeys(('train_list', 'eval_list'), 'annotations/val2017.json')
    data = source(coco, 'test', **lists)
    assert data.num_classes == count_classes(config_of(coco, **lists)) == 90
    assert data.class_names[2::87] == ('car', 'brush')
    assert data[0].target['classes'].tolist() == [89, 2]


def test_one_split_is_enough(coco):
    (coco / TRAIN).unlink()
    assert source(coco, 'test').num_classes == count_classes(config_of(coco)) == 2
    with pytest.raises(UserError, match=r'instances_train2017.json is missing: unpack the .* or '
                                        r'set data.train_list'):
        source(coco)


def test_annotations_need_no_area_and_no_crowd(coco):
    changed = content()
    for annotation in changed['annotations']:
        del annotation['area'], annotation['iscrowd']
    (coco / TRAIN).write_text(json.dumps(changed))
    target = source(coco)[0].target
    assert target['areas'].tolist() == [305, 2400] and not target['ignore'].any()


def test_the_fingerprint_follows_the_data_and_not_the_place(coco, tmp_path):
    first = source(coco)
    moved = coco.rename(tmp_path / 'moved')
    assert source(moved).fingerprint == first.fingerprint != source(moved, 'test').fingerprint
    changed = content()
    changed['annotations'][0]['iscrowd'] = 1
    (moved / TRAIN).write_text(json.dumps(changed))
    assert source(moved).fingerprint != first.fingerprint


def test_a_part_of_a_source_and_a_pickled_one_are_like_it(coco):
    data = source(coco)
    part = pickle.loads(pickle.dumps(Subset(data, np.array([0]))))
    assert (part.most_objects, part.category_ids.tolist()) == (2, [3, 90])
    np.testing.assert_equal(part[0].target, data[0].target)


def changed_box(coco, box):
    changed = content()
    changed['annotations'][1]['bbox'] = box
    (coco / TRAIN).write_text(json.dumps(changed))
    return coco


def test_a_box_may_leave_its_image_by_a_pixel_and_is_clipped(coco):
    data = source(changed_box(coco, [-0.5, -1, 61, 42]))
    assert data.target(0)['boxes'][1].tolist() == [0, 0, 60, 40]


@pytest.mark.parametrize('box', [[5, 5, 0, 3], [5, 5, 3, -1], [60.5, 5, 0.5, 3]])
def test_boxes_of_no_area_are_refused_or_left_out(coco, capsys, box):
    changed_box(coco, box)
    with pytest.raises(UserError, match=re.escape(
            f'2017.json: annotation 2 (7.jpg, bbox {box}) has no area; correct the box, or pass '
            '--bad_boxes=skip (when training, --config.data.bad_boxes=skip) to leave such boxes '
            'out.')):
        source(coco)
    assert source(coco, bad_boxes='skip').target(0)['classes'].tolist() == [1]
    err = capsys.readouterr().err
    assert err.startswith('warning: left out 1 box of no area: ') and err.count('\n') == 1


def without(key):
    return lambda data: data.pop(key)


def of_annotation(**changes):
    return lambda data: data['annotations'][1].update(changes)


@pytest.mark.parametrize(('change', 'sentence'), [
    (of_annotation(bbox=[0, 0, 62, 40]),
     r'annotation 2 \(7.jpg, bbox \[0, 0, 62, 40\]\) leaves the image, which is 60 x 40 pixels'),
    (of_annotation(bbox=[float('nan'), 0, 2, 4]), 'annotation 2 .* leaves the image'),
    (of_annotation(category_id=4),
     r'annotation 2 \(7.jpg, .*\) has the category id 4, which the file does not list; add it'),
    (of_annotation(image_id=4), 'annotation 2 .* has the image id 4, which the file does not list'),
    (of_annotation(bbox=[1, 2, 3]), "its annotation 1, counted from 0, has no proper 'bbox'"),
    (of_annotation(area='big'), "its annotation 1, counted from 0, has no proper 'area'"),
    (lambda data: data['images'][1].pop('file_name'), "its image 1, .* has no proper 'file_name'"),
    (lambda data: data['images'][1].update(id=7), 'the ids of its images must differ'),
    (lambda data: data['images'][1].update(id=2**31), 'ids of its images must .* fit 32 bits'),
    (lambda data: data['images'][1].update(file_name='6.jpg'),
     r'train2017.json names the image 6.jpg, but .*train2017/6.jpg is missing: unpack all images'),
    (lambda data: data['images'][0].update(file_name='6.jpg'),
     r'names the image 6.jpg, which is in none of .*train2017, .*images/train2017, .*images: unp'),
    (lambda data: data['annotations'].clear(), 'lists 2 images without a single object'),
    (without('categories'), 'not a COCO file of objects: it has no complete list of categories'),
    (without('images'), 'not a COCO file of objects: it has no lists of images and annotations'),
    (lambda data: data['categories'][1].update(name='bus'), 'the categories of .* differ'),
    (lambda data: data['categories'][1].update(id=90), 'the ids of its categories must differ'),
])
def test_bad_input_is_named(coco, change, sentence):
    changed = content()
    change(changed)
    (coco / TRAIN).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=sentence):
        source(coco)


@pytest.mark.parametrize('first', ['images', 'categories'])
def test_a_file_that_is_cut_short_is_named(coco, first):
    data = content()
    text = json.dumps({first: data.pop(first)} | data)
    (coco / TRAIN).write_text(text[:-20])
    with pytest.raises(UserError, match=r'instances_train2017.json is cut short or not .*copy it'):
        source(coco)


def test_an_image_of_another_size_is_named_when_it_is_read(coco):
    (coco / 'train2017/5.jpg').write_bytes(encoded(photograph(WIDTH, HEIGHT)))
    data = source(coco)
    with pytest.raises(UserError, match=r'5.jpg has 40 x 60 pixels, but its annotations state 60 '
                                        r'x 40: the boxes would not fit'):
        data[1]
    (coco / 'train2017/5.jpg').unlink()
    with pytest.raises(UserError, match=r'5.jpg cannot be read: .* the data changed since'):
        data[1]


def test_real_images_and_their_objects_are_read(real_data):
    folder = real_data('coco_mini.tar.xz')
    train, test = source(folder), source(folder, 'test')
    assert (len(train), len(test)) == (315, 302)
    assert len(train.objects.boxes) + len(test.objects.boxes) == 5238
    assert train.objects.ignore.sum() + test.objects.ignore.sum() == 50
    assert train.class_names[:2] == ('person', 'bicycle') and train.num_classes == 80
    assert train.category_ids[[0, 79]].tolist() == [1, 90]
    assert all(test[i].name == test.files[i] for i in range(len(test)))  # and is of its size
