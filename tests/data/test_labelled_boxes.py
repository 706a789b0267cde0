"""Sources for localization: a table of boxes beside an image folder, and ILSVRC's annotations."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax.data import box_table, imagenet_boxes
from resnet_jax.errors import UserError

OBJECT = ('<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
          '<ymax>{}</ymax></bndbox></object>')


def config_of(path, **fields):
    config = config_lib.default()
    config.data.update(path=str(path), **fields)
    return config


def picture(path, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(path)


@pytest.fixture
def table(tmp_path):
    for split in ('train', 'val'):
        for name in ('cat/a.png', 'cat/b.png', 'dog/c.png'):
            picture(tmp_path / split / name)
    (tmp_path / 'boxes.tsv').write_text(
        'file\txmin\tymin\txmax\tymax\n'
        'train/dog/c.png\t0\t0\t19\t9\ntrain/cat/a.png\t2\t3\t2\t3\ntrain/cat/a.png\t4\t1\t9\t8\n'
        'val/cat/b.png\t1\t1\t3\t3\n')
    return tmp_path


def test_a_table_has_inclusive_pixels_and_images_without_boxes_are_left_out(table, capsys):
    source = box_table.create(config_of(table), 'train')
    assert 'left out 1 of 3 images without a box' in capsys.readouterr().err
    assert len(source) == 2 and source.class_names == ('cat', 'dog')
    assert source.labels.tolist() == [0, 1] and source.most_objects == 2
    item = source[0]
    assert item.target['label'] == 0 and item.name.endswith('train/cat/a.png')
    assert item.target['boxes'].tolist() == [[2, 3, 3, 4], [4, 1, 10, 9]]
    assert source.target(1)['boxes'].tolist() == [[0, 0, 20, 10]]
    assert len(box_table.create(config_of(table), 'test')) == 1
    assert box_table.count_classes(config_of(table)) == 2


@pytest.mark.parametrize(('text', 'told'), [
    ('file\tx\n', 'must name the columns file, xmin'),
    ('file\txmin\tymin\txmax\tymax\ntrain/cat/a.png\t1\t2\t3\n', 'line 2 of .* four numbers'),
    ('file\txmin\tymin\txmax\tymax\ntrain/cat/a.png\t1\t2\t30\t5\n',
     r'box 1 of train/cat/a\.png \(1, 2, 31, 6\) leaves the image'),
    ('file\txmin\tymin\txmax\tymax\ntrain/cat/a.png\t5\t2\t3\t5\n', 'has no area'),
    ('file\txmin\tymin\txmax\tymax\n', 'without a single object')])
def test_what_is_wrong_with_a_table_is_one_sentence(text, told, table):
    (table / 'boxes.tsv').write_text(text)
    with pytest.raises(UserError, match=told):
        box_table.create(config_of(table), 'train')
    (table / 'boxes.tsv').unlink()
    with pytest.raises(UserError, match='cannot be read as text; it lists the boxes'):
        box_table.create(config_of(table), 'train')


def annotate(path, objects, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>'
                    + ''.join(OBJECT.format(*one) for one in objects) + '</annotation>')


@pytest.fixture
def ilsvrc(tmp_path):
    images, boxes = tmp_path / 'Data' / 'CLS-LOC', tmp_path / 'Annotations' / 'CLS-LOC'
    for wnid in ('n02', 'n01'):
        for i in range(2):
            picture(images / 'train' / wnid / f'{wnid}_{i}.JPEG')
    annotate(boxes / 'train' / 'n02' / 'n02_1.xml', [('n02', 0, 1, 19, 9), ('n02', 2, 2, 4, 4)])
    annotate(boxes / 'train' / 'n01' / 'n01_0.xml', [('n01', 5, 5, 9, 9)])
    for i, wnid in enumerate(('n02', 'n01')):
        picture(images / 'val' / f'ILSVRC2012_val_{i}.JPEG')
        annotate(boxes / 'val' / f'ILSVRC2012_val_{i}.xml', [(wnid, 1, 1, 2, 3)])
    return tmp_path


def test_images_of_ilsvrc_have_the_class_that_their_annotations_name(ilsvrc, capsys):
    train = imagenet_boxes.create(config_of(ilsvrc), 'train')
    assert 'boxes for 2 of 4 images; the others are left out' in capsys.readouterr().out
    assert train.class_names == ('n01', 'n02') and train.labels.tolist() == [0, 1]
    assert train.target(1)['boxes'].tolist() == [[0, 1, 20, 10], [2, 2, 5, 5]]
    test = imagenet_boxes.create(config_of(ilsvrc), 'test')
    assert test.labels.tolist() == [1, 0] and test[0].target['boxes'].tolist() == [[1, 1, 3, 4]]
    classes = ilsvrc / 'classes.txt'
    classes.write_text('n02\nn01\n')
    other = imagenet_boxes.create(config_of(ilsvrc, class_list=str(classes)), 'test')
    assert other.labels.tolist() == [0, 1]
    assert imagenet_boxes.count_classes(config_of(ilsvrc)) == 2


def test_what_is_wrong_with_annotations_is_one_sentence(ilsvrc):
    file = ilsvrc / 'Annotations' / 'CLS-LOC' / 'val' / 'ILSVRC2012_val_0.xml'
    for write, told in (
            (lambda: annotate(file, [('n99', 0, 0, 5, 5)]), "names the class 'n99', which is not"),
            (lambda: annotate(file, []), 'names no object'),
            (lambda: file.write_text('<annotation>'), 'is not an annotation as in ILSVRC'),
            (lambda: annotate(file, [('n01', 0, 0, 'x', 5)]), 'is not an annotation as in ILSVRC')):
        write()
        with pytest.raises(UserError, match=told):
            imagenet_boxes.create(config_of(ilsvrc), 'test')
    annotate(file, [('n01', 0, 0, 5, 5)], size=(30, 10))
    with pytest.raises(UserError, match='has 20 x 10 pixels, but its annotations state 30 x 10'):
        imagenet_boxes.create(config_of(ilsvrc), 'test')[0]
    with pytest.raises(UserError, match=r'is missing: data\.path must be a folder'):
        imagenet_boxes.create(config_of(ilsvrc / 'Data'), 'test')


def test_a_target_has_the_parts_that_are_announced(table, ilsvrc):
    for module, path in ((box_table, table), (imagenet_boxes, ilsvrc)):
        target = module.create(config_of(path), 'train').target(0)
        announced = module.example_target(None)
        assert {name: np.asarray(value).dtype for name, value in target.items()} == {
            name: np.asarray(value).dtype for name, value in announced.items()}
