"""Targets are any tree: in sources, records, batches of both pipelines and blank batches."""

import contextlib
import json
import pathlib
import struct
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from jax.sharding import Mesh

from resnet_jax import data
from resnet_jax.data import check, normalization, records, registry, shard_writer, sources
from resnet_jax.data.digits import digits
from resnet_jax.data.host import Host
from resnet_jax.data.resident import Resident
from resnet_jax.data.shards import Shards
from resnet_jax.data.synthetic import synthetic
from resnet_jax.data.types import Item
from resnet_jax.errors import UserError
from tests.data import brightness
from tests.data.data_helpers import encoded, photograph

FORMAT_1 = pathlib.Path(__file__).with_name('shards_format_1.zip')


def equal(one, other):
    """Whether trees have the same names, dtypes, shapes and bits."""
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


ARRAYS = st.sampled_from(records.DTYPES).flatmap(
    lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4)))
TREES = st.dictionaries(st.text(max_size=5), ARRAYS | st.dictionaries(
    st.text(max_size=5), ARRAYS, min_size=1, max_size=2), max_size=4)


@settings(max_examples=50, deadline=None)
@given(TREES, st.binary(max_size=50), st.text(st.characters(exclude_categories=['Cs']), max_size=9))
def test_a_record_gives_back_any_tree(target, image, name):
    found = records.unpack(records.pack(Item(image, target, name)))
    assert (found.image, found.name) == (image, name)
    assert equal(found.target, target)


def test_records_hold_numbers_as_jax_would_and_nothing_that_is_no_number():
    item = Item(b'x', {'count': 3, 'share': 0.5, 'flag': True, 'big': np.int64(2**40),
                       'swapped': np.array([1, 2], '>i2')}, 'a')
    found = records.unpack(records.pack(item)).target
    assert {name: (value.dtype.str, value.tolist()) for name, value in found.items()} == {
        'count': ('<i4', 3), 'share': ('<f4', 0.5), 'flag': ('|b1', True), 'big': ('<i8', 2**40),
        'swapped': ('<i2', [1, 2])}
    for value in ('text', None, np.array([object()]), np.array(['a'])):
        with pytest.raises(TypeError, match=r"target 'bad' of a has the dtype"):
            records.pack(Item(b'x', {'bad': value}, 'a'))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_record_is_a_value_error_whatever_the_damage(data):
    item = Item(b'image', {'boxes': np.ones((3, 4), np.float32), 'a': {'b': np.int32(3)}}, 'name')
    record = bytearray(records.pack(item))
    if data.draw(st.booleans()):
        record = record[:data.draw(st.integers(0, len(record) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if record:
            record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, struct.error):
        assert isinstance(records.unpack(bytes(record)), Item)


@pytest.mark.parametrize('described', [
    ['|O', [1]], ['<f4', [-1]], ['<f4', [2**40]], ['<f4', [2**40, 2**40]], ['<U4', [1]],
    ['<f4', ['1']], ['<f4'], 3, None])
def test_a_hostile_header_runs_nothing_and_allocates_nothing(described):
    header = json.dumps({'name': 'x', 'target': {'a': described}}).encode()
    with pytest.raises(ValueError):
        records.unpack(records.LENGTH.pack(len(header)) + header + bytes(8))


@pytest.fixture
def format_1(tmp_path):
    """Shards that the version before targets had names wrote: four images of two classes."""
    with zipfile.ZipFile(FORMAT_1) as file:
        file.extractall(tmp_path / 'shards')
    return tmp_path / 'shards'


def test_shards_of_format_1_are_read_with_the_fingerprint_of_then(format_1):
    source = Shards(str(format_1), 'train')
    assert source.fingerprint == 'a76e9494783d0d53e88d3f4114cfb4cf'
    assert (source.num_classes, source.class_names) == (2, ('a', 'b'))
    items = [source[i] for i in range(len(source))]
    assert [item.target for item in items] == [{'label': i} for i in (0, 0, 1, 1)]
    assert all(item.target['label'].dtype == np.int32 for item in items)
    assert items[3].name.endswith('(images/train/b/0001.jpg)')
    report = check.check(source, threads=1)
    assert (report['unreadable'], report['width']['most']) == ([], 16)
    shard_writer.verify(source.info, 'train', format_1, 1)


@pytest.mark.parametrize('missing', [False, True])
def test_a_split_that_was_begun_in_format_1_is_finished_in_it(format_1, missing):
    source = Shards(str(format_1), 'train')
    items = [item._replace(name=item.name.split('(')[1][:-1]) for item in map(
        source.__getitem__, range(4))]

    class Same(list):  # as the source of then
        fingerprint, num_classes = '12a21ae35b4116dc650621e4988913a9', 2
        class_names = ('a', 'b')

    files = sorted(format_1.glob('*.array_record'))
    before = [file.read_bytes() for file in files]
    if missing:
        files[1].unlink()
    info = shard_writer.prepare(
        Same(items), 'train', format_1, shorter_side=0, quality=92, images_per_shard=3,
        processes=1, skip_unreadable=False)
    assert info['format'] == 1
    assert before == [file.read_bytes() for file in files]
    assert Shards(str(format_1), 'train').fingerprint == source.fingerprint


def test_fingerprints_are_those_of_old():
    """Otherwise no run that an earlier version started could be resumed."""
    assert [source.fingerprint for source in (
        digits('train'), digits('test'), synthetic('train', (16, 16), 10),
        synthetic('test', (16, 16), 10), sources.hold_out(digits('train'), 100, True))] == [
            'fb2fa0e81fc8969448119c7e4728cfc4', 'e8af6c2ede1a543fe2838829e880d957',
            '4682286b18b124fad1c5b43a8c9d9560', 'eca88a85bde57d7f0005b45910dcedfe',
            '7ef511137f2da910c9d24f42b64cd497']


class Objects:
    """Photographs with none to four boxes, each with a class."""

    fingerprint = 'objects'

    def __len__(self):
        return 7

    def __getitem__(self, index):
        count = index % 5
        boxes = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
        return Item(encoded(photograph(20 + index, 30, index)),
                    {'boxes': boxes, 'classes': np.arange(count, dtype=np.int32), 'id': index},
                    f'{index}')


def padded(item):
    """What a task makes of them: of one size, and of five boxes, those that are there first."""
    count = len(item.target['boxes'])
    return {'image': np.zeros((8, 12, 3), np.uint8),
            'boxes': np.pad(item.target['boxes'], ((0, 5 - count), (0, 0))),
            'present': (np.arange(5) < count).astype(np.float32),
            'id': np.int32(item.target['id'])}


def test_shards_hold_images_with_any_number_of_objects(tmp_path):
    info = shard_writer.prepare(
        Objects(), 'train', tmp_path, shorter_side=0, quality=90, images_per_shard=3, processes=1,
        skip_unreadable=False)
    assert (info['num_images'], info['num_classes'], info['class_counts']) == (7, None, [])
    copy = Shards(str(tmp_path), 'train')
    assert copy.num_classes is None
    for i, original in enumerate(map(Objects().__getitem__, range(7))):
        assert copy[i].image == original.image
        assert equal(copy[i].target, {**original.target, 'id': np.int32(i)})
    report = check.check(copy, threads=1)
    assert report['images'] == 7 and 'classes' not in report
    assert shard_writer.prepare(
        Objects(), 'train', tmp_path, shorter_side=0, quality=90, images_per_shard=3, processes=1,
        skip_unreadable=False) == info


def mesh(devices=1):
    return Mesh(jax.devices()[:devices], 'data')


@pytest.fixture
def regression(config):
    """A config of the source beside this file, with images that are not square."""
    config.data.update(source='tests.data.brightness', image_size=(8, 12), train_crop='pad',
                       flip=False, normalization='none')
    return config


def batches(pipeline, norm, steps):
    make, inputs = jax.jit(pipeline.batch), pipeline.inputs(0)
    for step, x in zip(range(steps), inputs, strict=False):
        yield jax.device_get(make(x, np.int32(step), norm))
    getattr(inputs, 'close', lambda: None)()


def test_a_source_is_a_module_and_its_tree_passes_through_both_pipelines(regression):
    made = {}
    for kind in ('resident', 'host'):
        regression.data.pipeline = kind
        train, test, norm = data.create_pipelines(regression, mesh(8))
        classes = getattr(train.source, 'num_classes', None)
        assert (classes, data.count_classes(regression)) == (None, None)
        made[kind] = [*batches(train, norm, 2), *batches(test, norm, 3)]
    for batch in made['resident'] + made['host']:
        counts = batch['mask'] == 1
        np.testing.assert_allclose(255 * batch['image'].mean((1, 2, 3))[counts],
                                   batch['brightness'][counts], rtol=1e-5)
    for resident, host in zip(made['resident'], made['host'], strict=True):
        counts = host['mask'] == 1
        assert jax.tree.structure(resident) == jax.tree.structure(host)
        jax.tree.map(lambda a, b, counts=counts: np.testing.assert_array_equal(
            a[counts], b[counts]), resident, host)
    seen = np.concatenate([x['more']['index'][x['mask'] == 1] for x in made['host'][2:]])
    assert seen.tolist() == list(range(21))


def test_held_out_images_keep_their_targets(regression):
    source = brightness.create(regression, 'train')
    held = sources.hold_out(source, 5, True)
    assert held[2].target['more']['index'] not in sources.hold_out(source, 5, False).targets[
        'more']['index']
    assert held[2].target['brightness'] == held.images[2].mean(dtype=np.float32)
    assert (held.num_classes, source.num_classes) == (None, None)


def test_a_task_gives_its_own_transforms_and_its_own_augmentation(config, monkeypatch):
    objects = Objects()
    monkeypatch.setattr(registry, 'find', lambda _: type('module', (), {
        'create': staticmethod(lambda config, split: objects)}))
    config.data.normalization, config.data.image_size = 'none', (8, 12)

    def augment(examples, key, norm):
        noise = 0 if key is None else jax.random.uniform(key)
        image = normalization.normalize(examples['image'], norm) + noise
        return {**examples, 'image': image, 'count': examples['present'].sum(1)}

    drawn = {}

    def train_transform(item, rng):
        drawn.setdefault(item.target['id'], []).append(rng.integers(2**30))
        return padded(item)

    train, test, norm = data.create_pipelines(
        config, mesh(), train_transform=train_transform, eval_transform=padded, augment=augment)
    assert isinstance(train, Host)
    assert train.image_shape == (8, 12, 3)
    [batch] = batches(test, norm, 1)
    assert batch['count'].tolist() == [0, 1, 2, 3, 4, 0, 1, 0]
    assert batch['mask'].tolist() == [1] * 7 + [0]
    assert batch['boxes'].shape == (8, 5, 4) and batch['image'].max() == 0
    first, second = batches(train, norm, 2)
    assert sorted(first['id'].tolist())[:7] != sorted(first['id'].tolist())[1:]
    assert 0 < first['image'].min() == first['image'].max() != second['image'].max()
    assert len({number for numbers in drawn.values() for number in numbers}) > 16
    config.data.update(pipeline='resident', train_crop='pad')
    with pytest.raises(UserError, match=r'images on the host, .* set data.pipeline to host'):
        data.create_pipelines(config, mesh(), eval_transform=padded)


def test_targets_that_differ_in_shape_are_named(config, monkeypatch):
    monkeypatch.setattr(registry, 'find', lambda _: type('module', (), {
        'create': staticmethod(lambda config, split: Objects())}))
    config.data.normalization = 'none'
    _, test, norm = data.create_pipelines(config, mesh())
    with pytest.raises(UserError, match=r'must have the same shapes, got .*boxes.*\(0, 4\)'):
        list(batches(test, norm, 1))


def test_names_of_the_pipelines_are_not_those_of_targets(regression, monkeypatch):
    monkeypatch.setattr(brightness, 'create', lambda config, split: sources.ArraySource(
        np.zeros((9, 8, 12, 3), np.uint8), {'mask': np.zeros(9)}, 'x'))
    for regression.data.pipeline in ('resident', 'host'):
        with pytest.raises(ValueError, match="must not have a part called 'mask'"):
            data.create_pipelines(regression, mesh())


def test_blank_batches_are_like_the_real_ones(regression, monkeypatch, tmp_path):
    """Of a source that tells its targets; any other is opened."""
    def shapes(pipeline):
        return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), pipeline.input_shapes)

    regression.data.pipeline = 'host'
    real = shapes(data.create_pipelines(regression, mesh())[0])
    assert shapes(data.blank_pipelines(regression, mesh())[0]) == real
    monkeypatch.setattr(brightness, 'ON_DISK', True, raising=False)
    monkeypatch.setattr(brightness, 'example_target', lambda config: {
        'brightness': 0.0, 'more': {'index': np.int64(0)}}, raising=False)
    monkeypatch.setattr(brightness, 'num_images', lambda config, split: 21, raising=False)
    monkeypatch.setattr(brightness, 'create', None)
    regression.model.num_classes = None
    assert shapes(data.blank_pipelines(regression, mesh())[0]) == real
    regression.data.pipeline = 'resident'
    assert shapes(data.blank_pipelines(regression, mesh())[0])['more']['index'] == (
        (21,), np.int64)
    regression.data.update(source='shards', path=str(tmp_path), pipeline='host')
    assert shapes(data.blank_pipelines(regression, mesh())[0])['label'] == ((8,), np.int32)


@pytest.mark.parametrize(('name', 'sentence'), [
    ('mnist', r'must be one of folder, tfds, shards, .*, scene_digits, or a module'),
    (None, r'must be one of folder'), ('.source', r'must be one of folder'),
    ('tests.data.nothing', r'the module tests.data.nothing, and Python finds no tests.data'),
    ('no_such_package.source', r'and Python finds no no_such_package: add its folder to PYTHON'),
    ('tests.tiny', r'the module tests.tiny, which has no function create\(config, split\)')])
def test_a_source_that_is_none_is_one_sentence(config, name, sentence):
    config.data.source = name
    with pytest.raises(UserError, match=sentence):
        data.create_source(config, 'train')


def test_a_mistake_inside_a_source_keeps_its_traceback(config, tmp_path, monkeypatch):
    (tmp_path / 'broken_sources').mkdir()
    (tmp_path / 'broken_sources' / 'one.py').write_text('import not_installed_anywhere\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    config.data.source = 'broken_sources.one'
    with pytest.raises(ModuleNotFoundError, match='not_installed_anywhere'):
        data.create_source(config, 'train')


def test_targets_of_one_shape_lie_on_the_devices_and_in_the_cache(config, tmp_path, monkeypatch):
    class Sized(Objects):
        cache_key = 'sized'

        def __getitem__(self, index):
            return Item(encoded(photograph(24, 24, index), 'PNG'),
                        {'point': {'x': np.float32(index), 'y': 2.5}}, f'{index}')

    monkeypatch.setattr(registry, 'find', lambda _: type('module', (), {
        'create': staticmethod(lambda config, split: Sized())}))
    config.data.update(train_crop='pad', normalization='none')
    for _ in range(2):
        train, test, _ = data.create_pipelines(config, mesh())
        assert isinstance(train, Resident)
        assert equal(test.source.targets, {'point': {
            'x': np.arange(7, dtype=np.float32), 'y': np.full(7, 2.5, np.float32)}})
    [file] = (tmp_path / 'cache').glob('images-*.npz')
    with np.load(file) as arrays:
        assert sorted(arrays) == ['images', 'target/point/x', 'target/point/y']
    np.savez(file, images=np.zeros((7, 24, 24, 3), np.uint8), labels=np.zeros(7))  # the old format
    assert data.create_pipelines(config, mesh())[0].source.images.max() > 0


def test_types_are_imported_without_what_reads_images():
    heavy = ('grain', 'simplejpeg', 'PIL', 'cykooz_resizer', 'orbax', 'array_record', 'tensorflow')
    program = ('import sys, resnet_jax.config, resnet_jax.models, resnet_jax.data, '
               'resnet_jax.training.state\n'
               f'print([name for name in {heavy} if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          timeout=120, check=True)
    assert done.stdout == '[]\n'
