"""The protocols count every image once, on any mesh, and are the averages that they claim to be."""

import csv
import json
import types

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import config as config_lib
from resnet_jax.data import Item
from resnet_jax.data.sources import labelled
from resnet_jax.data.views import Views, fully_convolutional, resize, ten_crop
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification import inference, protocols
from resnet_jax.tasks.classification.scores import calibration_error, score
from resnet_jax.training import evaluation, loop, program
from tests.weights.networks import images, store


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """ResNet-8 and ResNet-14."""
    folders = [tmp_path_factory.mktemp(name) for name in ('r8', 'r14')]
    store(folders[0])
    store(folders[1], depth=14)
    return [resnet_jax.load(folder) for folder in folders]


@pytest.fixture(scope='module')
def source():
    """37 images of 40 x 40 pixels."""
    labels = np.random.default_rng(1).integers(10, size=37)
    return labelled(images(37, 40, 40, 3), labels, 10, 'test')


def log_probabilities(networks, source, *views, **options):
    found = inference.predict(networks, source, Views(*views), 16, **options)
    np.testing.assert_array_equal(found.labels, source.labels)
    return found.log_probabilities


def test_the_mesh_and_the_batch_change_nothing(networks, source):
    one = log_probabilities(networks[:1], source, 'center_crop', 32, 36,
                            devices=jax.local_devices()[:1])
    eight = log_probabilities(networks[:1], source, 'center_crop', 32, 36)
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-6)
    assert score(one, source.labels).report() == pytest.approx(
        score(eight, source.labels).report(), rel=1e-5)
    assert score(eight, source.labels).count == 37


def test_single_scale_is_the_centre_crop_and_an_ensemble_of_one_is_the_network(networks, source):
    network = networks[0]
    whole = log_probabilities([network], source, 'multi_scale', 40, 40, (40,))
    np.testing.assert_allclose(
        whole, log_probabilities([network], source, 'center_crop', 40, 40), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(whole), network.predict(source.images), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        whole, log_probabilities([network, network], source, 'multi_scale', 40, 40, (40,)),
        rtol=1e-5, atol=1e-5)


def test_ten_crop_is_the_mean_over_ten_explicit_crops(networks, source):
    x = np.stack([resize(image, 36) for image in source.images])
    crops = [x[:, top:top + 32, left:left + 32] for top, left in (
        (0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    expected = np.mean([networks[0].predict(view[:, :, ::step])
                        for view in crops for step in (1, -1)], 0)
    ours = np.exp(log_probabilities(networks[:1], source, 'ten_crop', 32, 36))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_scales_and_networks_are_averaged(networks, source):
    views = [np.stack([resize(image, scale) for image in source.images]) for scale in (32, 48)]
    expected = np.mean([network.predict(view) for network in networks for view in views], 0)
    ours = np.exp(log_probabilities(networks, source, 'multi_scale', 32, 32, (32, 48)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


class Shapes:
    """Images of many shapes, one of which cannot be read."""

    num_classes = 10

    def __init__(self, broken):
        self.broken = broken
        self.images = [images(40 + 9 * i % 50, 90 - 7 * i % 50, 3, seed=i) for i in range(12)]
        self.labels = np.arange(12) % 10

    def __len__(self):
        return 12

    def __getitem__(self, i):
        image = b'no image' if i == self.broken else self.images[i]
        return Item(image, {'label': self.labels[i]}, f'{i}')


@pytest.mark.slow
def test_images_of_any_shape_keep_their_place(networks):
    source = Shapes(broken=None)
    ours = log_probabilities(networks[:1], source, 'multi_scale', 32, 32, (32, 64))
    for i, image in enumerate(source.images):
        expected = np.mean([networks[0].predict(fully_convolutional(resize(image, scale)))
                            for scale in (32, 64)], 0)
        np.testing.assert_allclose(np.exp(ours[i]), expected, rtol=1e-4, atol=1e-6)


def test_unreadable_images_are_told_or_left_out(networks, capsys):
    with pytest.raises(UserError, match='3 cannot be read'):
        inference.predict(networks[:1], Shapes(3), Views('center_crop', 32, 32), 16)
    found = inference.predict(networks[:1], Shapes(3), Views('center_crop', 32, 32), 16,
                              skip_unreadable=True)
    assert (len(found.labels), found.skipped) == (11, 1)
    np.testing.assert_array_equal(found.labels, np.delete(np.arange(12) % 10, 3))
    assert capsys.readouterr().err == (
        'warning: skipped an image: 3 cannot be read: it is not a JPEG, PNG or WebP image.\n')


def test_views_are_what_the_papers_say():
    x = images(70, 100, 3)
    assert resize(x, 64).shape == (64, 91, 3)
    assert fully_convolutional(images(64, 91, 3)).shape == (64, 64, 3)
    assert fully_convolutional(images(300, 64, 3)).shape == (128, 64, 3)
    assert fully_convolutional(images(70, 70, 3)).shape == (70, 70, 3)
    crops = ten_crop(x, 64)
    np.testing.assert_array_equal(crops[3], x[6:, 36:])
    np.testing.assert_array_equal(crops[4], x[3:67, 18:82])
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


def test_scores_by_hand():
    probabilities = np.float32([[.7, .2, .1], [.1, .2, .7], [.2, .5, .3], [.6, .3, .1]])
    found = score(np.log(probabilities), np.int32([0, 0, 1, 1]))
    assert found.loss == pytest.approx(-np.mean(np.log([.7, .1, .5, .3])), rel=1e-6)
    assert (found.top1_error, found.top5_error, found.count) == (50, 0, 4)
    np.testing.assert_array_equal(found.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found.class_error, [50, 50, np.nan])
    # Bins around .7 (two images, one right), .5 (one, right) and .6 (one, wrong).
    assert found.calibration_error == pytest.approx(100 * (.4 + .5 + .6) / 4, rel=1e-5)
    assert calibration_error(np.array([1., 1.]), np.array([True, True])) == 0


def test_the_command_agrees_with_the_training_run(tiny_config, tmp_path, commands):
    tiny_config.num_steps = 10
    tiny_config.model.virtual_batch_size = None
    values = loop.train(tiny_config, tmp_path / 'run')
    result = commands.run('resnet_jax.evaluate', f'--workdir={tmp_path}/run', '--json',
                          f'--confusion={tmp_path}/confusion.tsv')
    assert result.status == 0, result.errors
    told = json.loads(result.output)
    for name in ('eval/top1_error', 'eval/top5_error', 'eval/count'):
        assert told[name] == pytest.approx(values[name], abs=1e-5)
    assert told['eval/loss'] == pytest.approx(values['eval/loss'], rel=1e-5)
    assert len(told['eval/class_error']) == 10 and told['eval/calibration_error'] > 0
    with open(tmp_path / 'confusion.tsv') as file:
        table = np.array([row[1:] for row in csv.reader(file, delimiter='\t')][1:], int)
    assert table.sum() == told['eval/count']
    assert 100 * (1 - table.trace() / table.sum()) == pytest.approx(told['eval/top1_error'])

    result = commands.run(
        'resnet_jax.evaluate', '--config=configs/digits_r20.py',
        '--config.model.virtual_batch_size=none', f'--checkpoint={tmp_path}/run/checkpoints/5',
        '--recalibrate_batches=4', f'--checkpoint={tmp_path}/run', '--protocol=ten_crop',
        '--resize=9')
    assert result.status == 0, result.errors
    assert 'on 297 images' in result.output


def views(own, changes, size=24):
    """What is seen by a network with these fields of `data`, if the user sets others."""
    network, config = config_lib.default(), config_lib.default()
    network.data.update(own)
    config.data.update({'source': 'folder', 'image_size': size, 'eval_resize': 28} | changes)
    flags = {'protocol': None, 'resize': None, 'scales': None,
             'set_fields': [f'data.{name}' for name in changes]}
    return protocols.views_of(flags, config, types.SimpleNamespace(config=network)).words


PUBLISHED = {'image_size': 32, 'eval_size': 48, 'eval_crop_share': 0.95, 'eval_filter': 'bicubic'}


@pytest.mark.parametrize(('changes', 'words'), [
    ({}, '48 from 50, bicubic'), ({'eval_filter': 'bilinear'}, '48 from 50, bilinear'),
    ({'eval_size': 64}, '64 from 67, bicubic'), ({'image_size': 40}, '40 from 42, bicubic'),
    ({'eval_resize': 60}, '48 from 60, bicubic'), ({'eval_resize': None}, '48 from 48, bicubic')])
def test_published_weights_have_a_crop_of_their_own_which_fields_of_the_command_line_change(
        changes, words):
    assert views(PUBLISHED, changes) == f'central crop of {words}'
    # As where the config leaves the size open, and the network is that of a run.
    run = PUBLISHED | {'source': 'folder'}
    if 'image_size' not in changes:
        assert views(run, changes, size=None) == f'central crop of {words}'
    assert views(run, {}) == 'central crop of 24 from 28, bilinear'


def test_published_weights_of_images_that_are_no_squares_replace_a_square_and_the_reverse():
    wide = PUBLISHED | {'image_size': (32, 48), 'eval_size': (48, 64)}
    assert views(wide, {}) == 'central crop of 48 x 64 from 50, bicubic'
    assert views(wide, {'eval_size': 40}) == 'central crop of 40 from 42, bicubic'
    assert views(PUBLISHED, {}, size=(24, 32)) == 'central crop of 48 from 50, bicubic'


@pytest.mark.parametrize(('changes', 'told'), [
    ({'eval_crop_share': 0.9}, 'data.eval_resize and data.eval_crop_share cannot both be set'),
    ({'eval_filter': 'box'}, "data.eval_filter must be one of bilinear, bicubic, got 'box'"),
    ({'eval_resize': 30}, r'data.eval_resize, \(30\) must not be less than .* crop \(48\)')])
def test_crops_that_contradict_one_another_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        views(PUBLISHED, changes)


def test_the_command_knows_which_fields_it_was_given(commands, tmp_path):
    store(tmp_path, channels=1, size=8)
    file = tmp_path / 'config.json'
    fields = json.loads(file.read_text())
    fields['data'] |= PUBLISHED | {'image_size': 8, 'eval_size': None}
    file.write_text(json.dumps(fields))
    result = commands.run('resnet_jax.evaluate', f'--checkpoint={tmp_path}', '--json',
                          '--config=configs/digits_r20.py', '--config.data.eval_size=12')
    assert result.status == 0, result.errors
    assert json.loads(result.output)['eval/views'] == 'central crop of 12 from 12, bicubic'


def test_recalibrating_leaves_the_network_as_it_was(tiny_config, tmp_path, monkeypatch):
    store(tmp_path, channels=1, size=8, virtual_batch_size=4)
    network = resnet_jax.load(tmp_path)
    before = network.config.to_json(), tiny_config.to_json()
    built = []

    def build(config, mesh):
        built.append(config)
        raise InterruptedError

    monkeypatch.setattr(program, 'build', build)
    with pytest.raises(InterruptedError):
        evaluation.recalibrated(network, tiny_config, 1)
    assert (network.config.to_json(), tiny_config.to_json()) == before
    # What is built is the network, over the batches of the config.
    assert (built[0].model.depth, built[0].model.width) == (8, network.config.model.width)
    assert built[0].model.virtual_batch_size == 8


def test_classes_have_the_names_that_are_stored_with_the_network(tmp_path):
    names = [f'name {i}' for i in range(10)]
    store(tmp_path / 'named', classes=names)
    store(tmp_path / 'unnamed')
    data = types.SimpleNamespace(num_classes=10, class_names=[f'folder {i}' for i in range(10)])
    named, unnamed = (resnet_jax.load(tmp_path / name) for name in ('named', 'unnamed'))
    assert protocols.class_names([unnamed, named], data) == tuple(names)
    assert protocols.class_names([unnamed], data) == data.class_names
    data.class_names = data.class_names[:9]
    assert protocols.class_names([unnamed], data) == tuple('0123456789')


def test_mirrored_views_are_mirrored_crops_where_the_middle_lies_between_two_pixels():
    """torchvision crops the mirrored image, whose middle is then one pixel beside this one."""
    x = images(64, 67, 3)
    center, mirrored = ten_crop(x, 64)[[4, 9]]
    np.testing.assert_array_equal(center, x[:, 2:66])
    np.testing.assert_array_equal(mirrored, x[:, 2:66][:, ::-1])


def test_networks_that_do_not_fit_are_told(networks, tmp_path):
    store(tmp_path, channels=1)
    with pytest.raises(UserError, match=r'b was trained on 10 classes, but the data has 7\.'):
        protocols.check_networks(networks, ['b', 'c'], 7)
    with pytest.raises(UserError, match=r'b and a are not an ensemble: .* 1 and 3 channels'):
        protocols.check_networks([networks[0], resnet_jax.load(tmp_path)], ['a', 'b'], 10)


@pytest.mark.parametrize(('arguments', 'told'), [
    ([], 'give --workdir=DIR'),
    (['--checkpoint=/nothing'], 'there is no folder /nothing'),
    (['--protocol=x'], '--protocol=x'),
])
def test_mistakes_end_in_one_sentence(commands, arguments, told):
    result = commands.run('resnet_jax.evaluate', *arguments)
    assert result.status == 1 and told in result.errors
    assert result.errors.count('\n') == 1
