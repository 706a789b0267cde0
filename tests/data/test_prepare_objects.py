"""Datasets with objects are written as shards, Pascal VOC and COCO, and read again as they were."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from jax.sharding import Mesh

from resnet_jax import config as config_lib
from resnet_jax.data import (
    create_pipelines,
    create_source,
    decode,
    object_writer,
    scenes,
    shard_writer,
)
from resnet_jax.data import prepare as prepare_command
from resnet_jax.data.crops import generator
from resnet_jax.data.objects import Canvas, EvalTransform, TrainTransform
from resnet_jax.data.shards import Shards
from resnet_jax.data.sources import hold_out
from resnet_jax.errors import UserError
from tests.data import test_coco, test_voc
from tests.data.test_coco import source as open_coco
from tests.data.test_voc import source as open_voc


@pytest.fixture
def coco(tmp_path):
    return test_coco.write(tmp_path / 'coco')


@pytest.fixture
def voc(tmp_path):
    return test_voc.write(tmp_path / 'voc')


def write_shards(source, output, shorter_side=0, split='train'):
    shard_writer.prepare(source, split, output, shorter_side=shorter_side, quality=90,
                         images_per_shard=5, processes=1, skip_unreadable=False)
    return Shards(str(output), split)


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
    for channels in (1, 3):
        canvas = Canvas(((64, 80),), channels, 8)
        evaluated, trained = EvalTransform(canvas), TrainTransform(canvas, True, (40, 56))
        for i in range(12):
            np.testing.assert_equal(evaluated(copy[i]), evaluated(source[i]))
            np.testing.assert_equal(trained(copy[i], generator(0, i)),
                                    trained(source[i], generator(0, i)))


def test_held_out_scenes_keep_their_objects(few_scenes):
    held = hold_out(few_scenes['train'], 5, True)
    assert (len(held), held.most_objects) == (5, few_scenes['train'].most_objects)
    np.testing.assert_equal(held[0].target, few_scenes['train'][int(held[0].target['id'])].target)


@pytest.mark.parametrize('channels', [1, 3])
def test_the_normalisation_has_the_channels_of_the_canvas(few_scenes, channels, tmp_path):
    write_shards(few_scenes['train'], tmp_path, split='train')
    write_shards(few_scenes['test'], tmp_path, split='test')
    found = []
    for source in ('scenes', 'shards'):
        config = config_lib.default()
        config.batch_size = config.eval.batch_size = 4
        config.data.update(source=source, path=str(tmp_path), image_size=64, channels=channels,
                           pipeline='host', cache=str(tmp_path / 'cache'))
        canvas = Canvas(((64, 64),), channels, 8)
        train, _, normalization = create_pipelines(
            config, Mesh(jax.devices()[:1], 'data'), eval_transform=EvalTransform(canvas),
            train_transform=TrainTransform(canvas, True), augment=lambda x, key, norm: x)
        assert train.image_shape == (64, 64, channels)
        found.append(normalization)
    assert {name: value.shape for name, value in found[0].items()} == {
        'mean': (channels,), 'std': (channels,)}
    np.testing.assert_equal(found[0], found[1])


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
