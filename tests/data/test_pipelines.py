"""Both pipelines give the same batches, every image counts once, and nothing depends on a mesh."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.data import check_unchanged, create_pipelines, create_source
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.host import Host
from resnet_jax.data.resident import Resident
from resnet_jax.errors import UserError
from tests.data.data_helpers import encoded, photograph, write_folder


def mesh(devices=1):
    if len(jax.devices()) < devices:
        pytest.skip(f'needs {devices} devices: set '
                    f'XLA_FLAGS=--xla_force_host_platform_device_count={devices}')
    return Mesh(jax.devices()[:devices], 'data')


def batches(pipeline, normalization, steps, start=0):
    make, inputs = jax.jit(pipeline.batch), pipeline.inputs(start)
    for step, x in zip(range(start, start + steps), inputs, strict=False):
        yield jax.device_get(make(x, np.int32(step), normalization))
    getattr(inputs, 'close', lambda: None)()


@pytest.fixture
def tiny(config, tmp_path):
    """Images that have the network's size already, as CIFAR's, and are not square."""
    config.data.path = str(write_folder(tmp_path / 'tiny', size=(24, 28)))
    config.data.update(image_size=(24, 28), train_crop='pad', crop_padding=2)
    return config


@pytest.mark.parametrize('normalization', ['per_channel', 'per_pixel_mean', 'imagenet', 'none'])
def test_both_pipelines_give_the_same_bits(tiny, normalization):
    tiny.data.normalization = normalization
    made = {}
    for kind in ('resident', 'host'):
        tiny.data.pipeline = kind
        train, test, norm = create_pipelines(tiny, mesh())
        made[kind] = [*batches(train, norm, 5), *batches(test, norm, 4)]
    assert isinstance(test, Host)
    for resident, host in zip(made['resident'], made['host'], strict=True):
        np.testing.assert_array_equal(resident['mask'], host['mask'])
        counts = host['mask'] == 1  # what fills the last batch does not matter
        for name in ('image', 'label'):
            np.testing.assert_array_equal(resident[name][counts], host[name][counts])
    assert made['host'][0]['image'].dtype == np.float32
    assert made['host'][0]['image'].shape == (8, 24, 28, 3)


def test_size_and_crop_choose_the_pipeline(tiny):
    assert isinstance(create_pipelines(tiny, mesh())[0], Resident)
    tiny.data.resident_bytes = 30 * 24 * 28 * 3 - 1
    assert isinstance(create_pipelines(tiny, mesh())[0], Host)
    tiny.data.pipeline = 'resident'
    assert isinstance(create_pipelines(tiny, mesh())[0], Resident)
    tiny.data.image_size = 20
    with pytest.raises(UserError, match=r'set data.pipeline to host'):
        create_pipelines(tiny, mesh())


@pytest.mark.parametrize(('devices', 'asked', 'size'), [
    (1, 10**6, 32), (8, 10**6, 64), (1, 32, 32), (1, 24, 24)])
@pytest.mark.parametrize('pipeline', ['resident', 'host'])
def test_a_batch_of_evaluation_has_little_more_than_all_images(
        tiny, pipeline, devices, asked, size):
    tiny.data.pipeline, tiny.eval.batch_size = pipeline, asked
    _, test, _ = create_pipelines(tiny, mesh(devices))
    assert (test.num_images, test.batch_size) == (30, size)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('pipeline', ['resident', 'host'])
def test_an_evaluation_counts_every_image_once(tiny, pipeline, devices):
    tiny.data.pipeline = pipeline
    for batch_size in (8, 16, 40):
        tiny.eval.batch_size = batch_size
        _, test, norm = create_pipelines(tiny, mesh(devices))
        steps = -(-30 // batch_size)
        seen = list(batches(test, norm, steps))
        assert len(seen) == steps
        mask = np.concatenate([x['mask'] for x in seen])
        labels = np.concatenate([x['label'] for x in seen])
        assert mask.sum() == 30
        np.testing.assert_array_equal(labels[mask == 1], np.repeat([0, 1, 2], 10))


@pytest.mark.parametrize('mixes', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_is_the_same_on_one_device_and_on_eight(tiny, mixes):
    tiny.data.pipeline, config = 'host', tiny
    config.data.color_noise = 0.1
    if mixes:  # takes 10 s to compile
        config.data.mixup_alpha, config.data.cutmix_alpha = 0.2, 1.0
    one, eight = (list(batches(*(create_pipelines(config, mesh(n))[i] for i in (0, 2)), 3))
                  for n in (1, 8))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_an_epoch_visits_every_image_once(config):
    config.batch_size, config.data.mixup_alpha = 10, 0.0
    train, _, norm = create_pipelines(config, mesh())
    for epoch in range(2):
        labels = [x['label'] for x in batches(train, norm, 3, start=3 * epoch)]
        assert np.bincount(np.concatenate(labels)).tolist() == [10, 10, 10]


def test_mixup_weights_are_those_of_the_pixels(config):
    config.data.mixup_alpha, config.data.cutmix_alpha = 0.4, 1.0
    mixed = next(batches(*(create_pipelines(config, mesh())[i] for i in (0, 2)), 1))
    config.data.mixup_alpha, config.data.cutmix_alpha = 0.0, 0.0
    plain = next(batches(*(create_pipelines(config, mesh())[i] for i in (0, 2)), 1))
    np.testing.assert_array_equal(mixed['mix_label'], plain['label'].reshape(4, 2)[:, ::-1].ravel())
    weight = mixed['mix_weight'][:, None, None, None]
    partner = plain['image'].reshape(4, 2, 24, 24, 3)[:, ::-1].reshape(8, 24, 24, 3)
    own = np.isclose(mixed['image'], plain['image']).all(-1)
    blended = np.isclose(mixed['image'], weight * plain['image'] + (1 - weight) * partner,
                         atol=1e-5).all((1, 2, 3))
    pasted = np.isclose(own.mean((1, 2)), mixed['mix_weight'], atol=0.02)
    assert (blended | pasted).all()


def test_an_unreadable_image_is_an_error_or_skipped_and_counted(config, folder, monkeypatch):
    for split in ('train', 'test'):
        file = folder / split / 'b' / '0003.jpg'
        file.write_bytes(file.read_bytes()[:200])
    config.data.normalization = 'imagenet'
    train, test, norm = create_pipelines(config, mesh())
    for pipeline in (train, test):
        with pytest.raises(UnreadableImageError, match=r'0003.jpg cannot be read'):
            list(batches(pipeline, norm, 4))
    config.data.on_unreadable, config.data.normalization = 'skip', 'per_channel'
    train, test, norm = create_pipelines(config, mesh())
    seen = list(batches(test, norm, 4))
    assert sum(x['mask'].sum() for x in seen) == 29
    assert test.skipped == 1
    assert all(x['mask'].all() for x in batches(train, norm, 4))
    assert train.skipped >= 1
    # Over a job of three processes, of which each has skipped as many.
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda x: np.stack([x] * 3))
    assert train.total_skipped() == 3 * train.skipped


def test_the_image_cache_leaves_out_unreadable_images(tiny, tmp_path, capsys):
    for split in ('train', 'test'):
        (tmp_path / 'tiny' / split / 'a' / '0000.jpg').write_text('hello')
    with pytest.raises(UnreadableImageError, match=r'a/0000.jpg cannot be read'):
        create_pipelines(tiny, mesh())
    tiny.data.on_unreadable = 'skip'
    train, test, _ = create_pipelines(tiny, mesh())
    assert (train.num_images, test.num_images) == (29, 29)
    assert isinstance(train, Resident)
    assert train.skipped == 1
    name = tmp_path / 'tiny' / 'train' / 'a' / '0000.jpg'
    assert capsys.readouterr().err.splitlines()[:2] == [
        f'warning: skipped an image: {name} cannot be read: it is not a JPEG, PNG or WebP image.',
        'warning: unreadable images left out: 1 of 30.']
    assert create_pipelines(tiny, mesh())[0].skipped == 1  # by the cache
    assert 'warning: unreadable images left out: 1 of 30.' in capsys.readouterr().err


def test_workers_hand_on_the_error_that_names_the_file(config, folder):
    (folder / 'test' / 'a' / '0001.jpg').write_bytes(b'')
    config.data.normalization, config.data.workers = 'none', 1
    _, test, norm = create_pipelines(config, mesh())
    with pytest.raises(UnreadableImageError, match=r'0001.jpg cannot be read: it is empty'):
        list(batches(test, norm, 1))


def test_statistics_are_exact_and_cached(config, tmp_path):
    config.data.normalization = 'per_channel'
    *_, norm = create_pipelines(config, mesh())
    files = list((tmp_path / 'cache').glob('statistics-*.npz'))
    assert len(files) == 1
    again = create_pipelines(config, mesh())[2]
    jax.tree.map(np.testing.assert_array_equal, norm, again)
    config.data.normalization, config.data.cache = 'none', ''
    config.data.eval_split, config.data.holdout = 'holdout', 29
    _, test, none = create_pipelines(config, mesh())
    assert test.num_images == 29
    assert np.all(none['std'] == 1)


def test_the_image_cache_follows_the_files_and_survives_damage(tiny, tmp_path):
    create_pipelines(tiny, mesh())
    caches = sorted((tmp_path / 'cache').glob('images-*.npz'))
    assert len(caches) == 2
    for file in caches:
        file.write_bytes(file.read_bytes()[:1000])
    first, _, norm = create_pipelines(tiny, mesh())
    before = next(batches(first, norm, 1))
    changed = tmp_path / 'tiny' / 'train' / 'a' / '0000.jpg'
    changed.write_bytes(encoded(photograph(24, 28, seed=99)))
    second, _, norm = create_pipelines(tiny, mesh())
    assert not np.array_equal(before['image'], next(batches(second, norm, 1))['image'])
    assert len(list((tmp_path / 'cache').glob('.writing-*'))) == 0


def test_a_source_that_changed_since_the_checkpoint_is_an_error(config, folder):
    source = create_source(config, 'train')
    check_unchanged(source.fingerprint, create_source(config, 'train'), 'the training data')
    (folder / 'train' / 'c' / '0009.jpg').unlink()
    with pytest.raises(UserError, match=r'the training data changed since the checkpoint'):
        check_unchanged(source.fingerprint, create_source(config, 'train'), 'the training data')


def test_the_held_out_images_are_the_rest(tiny):
    tiny.data.holdout, tiny.data.eval_split = 7, 'holdout'
    tiny.data.normalization = 'none'
    train, test, _ = create_pipelines(tiny, mesh())
    assert (train.num_images, test.num_images) == (23, 7)
    sums = np.concatenate([x.source.images.astype(np.int64).sum((1, 2, 3)) for x in (train, test)])
    tiny.data.holdout, tiny.data.eval_split = 0, 'test'
    everything = create_pipelines(tiny, mesh())[0].source.images.astype(np.int64).sum((1, 2, 3))
    assert sorted(sums) == sorted(everything)


def test_transfers_are_explicit(config):
    train, _, norm = create_pipelines(config, mesh())
    make = jax.jit(train.batch)
    norm, step = jax.device_put((norm, np.int32(0)))
    inputs = train.inputs(0)
    with jax.transfer_guard('disallow'):
        make(next(inputs), step, norm)['image'].block_until_ready()
    inputs.close()


@pytest.mark.parametrize(('field', 'value', 'sentence'), [
    ('source', 'imagenet', 'data.source must be one of folder, tfds'),
    ('train_crop', 'middle', 'data.train_crop must be one of'),
    ('on_unreadable', 'ignore', 'data.on_unreadable must be one of'),
    ('normalization', 'mean', 'data.normalization must be one of'),
    ('holdout', 30, 'data.holdout must be from 0 to 29'),
    ('eval_split', 'holdout', 'needs data.holdout'),
    ('eval_resize', 20, 'data.eval_resize=20 must not be less than data.image_size=24'),
    ('pipeline', 'resident', 'set data.pipeline to host'),
    ('path', '/nowhere', 'data.path must be the folder of the dataset'),
    ('crop_padding', 1000, 'data.crop_padding=1000 must be less than data.image_size=24'),
    ('crop_padding', 24, 'data.crop_padding=24 must be less than data.image_size=24'),
    ('channels', 2, 'data.channels must be 1 or 3, got 2'),
    ('crop_scale', (0.5, 1.5), 'data.crop_scale must be two shares of the area'),
    ('crop_scale', (0.9, 0.1), r'the smaller one first; got \(0.9, 0.1\)'),
    ('crop_scale', (0.5,), 'data.crop_scale must be two shares'),
    ('crop_ratio', (0.0, 1.0), 'data.crop_ratio must be two ratios of width to height'),
    ('crop_ratio', (float('nan'), 1.0), 'data.crop_ratio must be two ratios'),
    ('crop_ratio', (1.0, float('inf')), 'data.crop_ratio must be two ratios'),
    ('jitter_sides', (480, 256), 'data.jitter_sides must be two numbers of pixels'),
    ('mixup_alpha', float('inf'), 'data.mixup_alpha must be a finite number, got inf'),
    ('color_noise', float('nan'), 'data.color_noise must be a finite number, got nan'),
    ('randaugment_magnitude', 11, 'data.randaugment_magnitude must be at most 10'),
])
def test_a_wrong_field_is_one_sentence(config, field, value, sentence):
    if field == 'crop_padding':
        config.data.train_crop = 'pad'
    config.data[field] = value
    with pytest.raises(UserError, match=sentence):
        create_pipelines(config, mesh())


@pytest.mark.parametrize('field', ['color_noise', 'randaugment_layers'])
def test_augmentation_of_colours_is_refused_for_grey_images(config, field):
    config.data.channels, config.data[field] = 1, 1
    with pytest.raises(UserError, match=rf'data.{field} is for colour images: set it to 0'):
        create_pipelines(config, mesh())
