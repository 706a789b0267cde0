"""Datasets with objects are written as shards, Pascal VOC and COCO, and read again as they were."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from resnet_jax import config as config_lib
from resnet_jax.data import check, create_source, decode, object_writer, scenes, shard_writer
from resnet_jax.data import prepare as prepare_command
from resnet_jax.data.crops import generator
from resnet_jax.data.objects import Canvas, EvalTransform, TrainTransform
from resnet_jax.data.scenes import ObjectArrays
from resnet_jax.data.shards import Shards
from resnet_jax.data.types import Item
from resnet_jax.errors import UserError
from tests.data import test_coco, test_voc
from tests.data.data_helpers import encoded, photograph
from tests.data.test_coco import source as open_coco
from tests.data.test_voc import source as open_voc
from tests.data.test_voc import xml


@pytest.fixture
def coco(tmp_path):
    return test_coco.write(tmp_path / 'coco')


@pytest.fixture
def voc(tmp_path):
    return test_voc.write(tmp_path / 'voc')


def write_shards(source, output, shorter_side=0):
    shard_writer.prepare(source, 'train', output, shorter_side=shorter_side, quality=90,
                         images_per_shard=5, processes=1, skip_unreadable=False)
    return Shards(str(output), 'train')


@pytest.fixture
def few_scenes(monkeypatch):
    """The command reads 12 + 6 scenes."""
    monkeypatch.setattr(scenes, 'SCENES', {'train': 12, 'test': 6})
    scenes.scenes.cache_clear()
    yield {split: scenes.scenes(split) for split in ('train', 'test')}
    scenes.scenes.cache_clear()


def command(**changes):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**changes):
        prepare_command.main([])


def reopened(layout, path, split):
    config = config_lib.default()
    config.data.update(source=layout, path=str(path))
    return create_source(config, split)


@pytest.mark.parametrize('name', ['voc', 'coco'])
def test_shards_hold_the_same_objects_and_files(request, name, tmp_path):
    source = {'voc': open_voc, 'coco': open_coco}[name](request.getfixturevalue(name))
    copy = write_shards(source, tmp_path / 'shards')
    assert len(copy) == len(source)
    assert (copy.most_objects, copy.num_classes) == (2, source.num_classes)
    assert copy.class_names == source.class_names
    if name == 'coco':
        assert copy.category_ids.tolist() == [3, 90] and copy.category_ids.dtype == np.int32
    else:
        assert not hasattr(copy, 'category_ids')
    for i in range(len(source)):
        assert copy[i].image == source[i].image
        np.testing.assert_equal(dict(copy[i].target), source[i].target)
        assert {key: value.dtype for key, value in copy[i].target.items()} == {
            key: value.dtype for key, value in source[i].target.items()}
    assert sum(copy.info['class_counts']) == source.objects.counts.sum()


def test_a_detector_gets_the_same_examples_from_shards(few_scenes, tmp_path):
    source = few_scenes['train']
    copy = write_shards(source, tmp_path / 'shards')
    assert (copy.most_objects, len(copy.info['shards'])) == (source.most_objects, 3)
    assert all(shard_writer.verify_shard(tmp_path / 'shards', shard, 2) == ''
               for shard in copy.info['shards'])
    canvas = Canvas((64, 80), 1, 8)
    evaluated, trained = EvalTransform(canvas), TrainTransform(canvas, True, (40, 56))
    for i in range(12):
        np.testing.assert_equal(evaluated(copy[i]), evaluated(source[i]))
        np.testing.assert_equal(trained(copy[i], generator(0, i)),
                                trained(source[i], generator(0, i)))


def test_boxes_and_areas_shrink_with_the_pixels(coco, tmp_path):
    source = open_coco(coco)  # of 40 x 60 pixels
    item = write_shards(source, tmp_path / 'shards', 20)[0]
    assert decode.image_size(item.image, '') == (20, 30)
    assert item.target['boxes'].tolist() == [[5.25, 2.5, 15.25, 10.125], [0, 0, 30, 20]]
    assert item.target['areas'].tolist() == [123.5 / 4, 7 / 4]
    assert item.target['areas'].dtype == np.float32


def test_a_class_out_of_range_in_a_shard_is_an_error(few_scenes, tmp_path):
    write_shards(few_scenes['train'], tmp_path / 'shards')
    path = tmp_path / 'shards/train.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'num_classes': 2}))
    with pytest.raises(UserError, match=r'has the label \d, which is not in \[0, 2\)'):
        [Shards(str(tmp_path / 'shards'), 'train')[i] for i in range(12)]


@pytest.mark.parametrize('layout', ['voc', 'coco'])
def test_scenes_come_back_from_both_layouts_as_they_were(few_scenes, layout, tmp_path, capsys):
    command(source='scenes', format=layout, output=str(tmp_path), processes='2')
    told = capsys.readouterr().out
    for split, source in few_scenes.items():
        copy = reopened(layout, tmp_path, split)
        objects = sum(len(source[i].target['boxes']) for i in range(len(source)))
        assert f'{split}: {len(source)} images with {objects} objects, 0 skipped.\n' in told
        assert (len(copy), copy.class_names) == (len(source), tuple(source.class_names))
        assert copy.most_objects == source.most_objects
        for i in range(len(source)):
            np.testing.assert_equal(copy[i].target, dict(source[i].target))
            np.testing.assert_array_equal(decode.decode(copy[i].image, '')[..., :1],
                                          source[i].image)


@pytest.mark.parametrize('layout', ['voc', 'coco'])
def test_crowds_ids_fractions_and_files_are_kept(coco, layout, tmp_path):
    source = open_coco(coco)
    command(source='coco', path=str(coco), format=layout, output=str(tmp_path / 'out'),
            splits='train', processes='1')
    copy = reopened(layout, tmp_path / 'out', 'train')
    expected = [source[i].target for i in range(2)]
    order = [0, 1]
    if layout == 'voc':  # which has neither areas nor ids, and sorts the names of classes
        order = [1, 0]
        for i, target in enumerate(expected):
            boxes = target['boxes']
            target.update(id=i, areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    else:
        assert copy.category_ids.tolist() == [3, 90]
    assert copy.class_names == tuple(source.class_names[i] for i in order)
    for i, target in enumerate(expected):
        assert copy[i].image == source[i].image
        target['classes'] = np.argsort(order)[target['classes']].astype(np.int32)
        np.testing.assert_equal(copy[i].target, target)


def test_nothing_that_is_left_by_an_interruption_can_be_opened(few_scenes, tmp_path, monkeypatch):
    whole, calls = object_writer.write_whole, []

    def interrupted(path, content):
        calls.append(path.name)
        if path.name == 'test_000003.png':
            raise KeyboardInterrupt
        whole(path, content)

    for layout in ('voc', 'coco'):
        monkeypatch.setattr(object_writer, 'write_whole', interrupted)
        with pytest.raises(KeyboardInterrupt):
            command(source='scenes', format=layout, output=str(tmp_path / layout), processes='1')
        for split in ('train', 'test'):
            with pytest.raises(UserError, match=r'has no list|is missing'):
                reopened(layout, tmp_path / layout, split)
        monkeypatch.setattr(object_writer, 'write_whole', whole)
        command(source='scenes', format=layout, output=str(tmp_path / layout), processes='1')
        assert len(reopened(layout, tmp_path / layout, 'test')) == 6
        calls.clear()
        with pytest.raises(UserError, match=r'exists already: give another --output, delete'):
            command(source='scenes', format=layout, output=str(tmp_path / layout))
        assert calls == []
    assert not list(tmp_path.rglob('*.part'))


def test_what_cannot_be_written_is_refused(folder, few_scenes, tmp_path):
    with pytest.raises(UserError, match=r'--format=voc is for images with boxes, which this data'):
        command(source='folder', path=str(folder), format='voc', output=str(tmp_path / 'out'))
    with pytest.raises(UserError, match=r'--verify is for shards; use `python -m .*check --source'):
        command(source='scenes', format='coco', output=str(tmp_path / 'out'), verify='true')
    assert not (tmp_path / 'out').exists()
    same = object_writer.Written('a', '.png', 1, 1, few_scenes['train'][0].target)
    with pytest.raises(UserError, match=r'two images of this dataset have the same id'):
        object_writer.instances_json([same, same], list('0123456789'), range(1, 11))


def test_a_damaged_image_is_an_error_or_left_out(voc, tmp_path, capsys):
    (voc / 'JPEGImages/a2.jpg').write_bytes(b'damaged')
    options = {'source': 'voc', 'path': str(voc), 'format': 'coco', 'splits': 'train',
               'output': str(tmp_path / 'out')}
    with pytest.raises(UserError, match=r'a2.jpg cannot be read'):
        command(**options)
    command(**options, skip_unreadable='true')
    assert 'train: 1 images with 2 objects, 1 skipped.' in capsys.readouterr().out
    assert len(reopened('coco', tmp_path / 'out', 'train')) == 1


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
