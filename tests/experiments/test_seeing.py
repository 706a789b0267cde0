"""What is measured on a trained network: attributions, maximisation, the loss surface."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from experiments.seeing import (
    filters,
    gradcam,
    integrated_gradients,
    loss_surface,
    maximisation,
)
from experiments.seeing.activations import looped, on_device
from resnet_jax.data.digits import digits
from resnet_jax.tasks.network import normalized, outputs
from resnet_jax.training.loop import train
from tests import tiny
from tests.experiments import hand_set

pytestmark = pytest.mark.slow

TEST = digits('test')
TRAIN = digits('train')


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """ResNet-8 of 8 filters after 60 steps on digits."""
    workdir = tmp_path_factory.mktemp('run')
    config = tiny.config()
    config.num_steps = 60
    config.eval.every_steps = config.checkpoint.every_steps = 60
    assert train(config, workdir)['eval/top1_error'] < 50
    return resnet_jax.load(workdir)


@pytest.fixture(scope='module')
def model(network):
    return looped(network.model)


@pytest.fixture(scope='module')
def weights(network):
    return on_device(network)


@pytest.mark.slow
def test_attributions_add_up_to_the_difference_of_the_scores(network, model, weights):
    images, rows = TEST.images[:12], np.arange(12)
    compilations = integrated_gradients._integrate._cache_size()
    for classes in (TEST.labels[:12], (TEST.labels[:12] + 1) % 10):
        found = integrated_gradients.integrated_gradients(
            integrated_gradients.ClassScore(model), weights, classes, images)
        difference = (network.logits(images) - network.logits(np.zeros_like(images)))[rows, classes]
        np.testing.assert_allclose(found.difference, difference, rtol=1e-3, atol=1e-4)
        gap = np.abs(found.values.sum((1, 2, 3)) - difference) / np.abs(difference)
        assert np.median(gap) < 0.01 and gap.max() < 0.03
        np.testing.assert_allclose(found.gap, gap, atol=2e-3)
    assert integrated_gradients._integrate._cache_size() == compilations + 1


def cubes(weights, targets, images):
    return targets * (weights * images ** 3).sum((1, 2, 3))


def test_attributions_of_a_polynomial_are_exact():
    rng = np.random.default_rng(0)
    weights, images = rng.normal(size=(4, 4, 3)), rng.random((10, 4, 4, 3), np.float32)
    targets = np.arange(1, 11)
    found = integrated_gradients.integrated_gradients(
        cubes, weights.astype(np.float32), targets, images, baseline=0.5)
    # The integral of 3 w (b + t (x - b))**2 (x - b) over t from 0 to 1.
    expected = targets[:, None, None, None] * weights * (images.astype(float) ** 3 - 0.5 ** 3)
    np.testing.assert_allclose(found.values, expected, atol=2e-5)
    assert (found.points == 64).all() and found.gap.max() < 1e-3


def test_no_more_gradients_are_taken_than_asked_for():
    rng = np.random.default_rng(0)
    weights, images = rng.normal(size=(4, 4, 3)), rng.random((3, 4, 4, 3), np.float32)
    for most, taken in ((64, 64), (100, 64), (256, 256)):
        found = integrated_gradients.integrated_gradients(
            cubes, weights.astype(np.float32), np.ones(3), images, tolerance=0.0, most=most)
        assert (found.points == taken).all() and found.gap.max() < 1e-3


def test_colours_are_mixed_as_those_of_the_images_are_correlated():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 9, 9, 3)) @ np.array([[3, 2, 2], [0, 1, 0.5], [0, 0, 0.5]])
    mixture = maximisation.color_mixture(images)
    covariance = np.cov(images.reshape(-1, 3).T)
    np.testing.assert_allclose(mixture @ mixture / 3, covariance / covariance.trace(), atol=1e-9)
    np.testing.assert_allclose(maximisation.color_mixture(TEST.images[:9]), [[1]])
    np.testing.assert_array_equal(maximisation.color_mixture(np.zeros((2, 4, 4, 3))), np.eye(3))


def test_optimised_images_have_the_size_and_the_number_asked_for():
    section = maximisation.section(hand_set.network(), hand_set.images(), steps=2, starts=1,
                                   channels=3, side=16)
    rows = {'maximised_classes': (2, 10), 'maximised_channels': (6, 3)}
    for name, (count, columns) in rows.items():
        height, width, _ = section.pictures[name].pixels.shape
        assert height == count * (64 + 4) + 4  # enlarged to 64 pixels, with lines of 4 between
        assert width > columns * (64 + 4) + 4
    assert '16 x 16 pixels' in section.caption and 'best of' not in section.caption


@pytest.mark.slow
def test_an_optimised_image_drives_its_channel_and_its_class(network, model, weights):
    compilations = maximisation._maximise._cache_size()
    for targets in (np.arange(10), np.arange(20, 30)):
        found = maximisation.maximise(model, weights, 'stage3', targets, (8, 8, 1),
                                      jax.random.key(0))
        of_network = network.features(found.images, 'stage3').mean((1, 2))
        np.testing.assert_allclose(of_network[range(10), targets], found.activation, rtol=1e-3)
        # By a factor of 1.5 over images of noise of the same norm; and for nine channels in ten,
        # over each of them, since the optimisation may end in a local maximum.
        assert (found.activation > 1.5 * found.random_activation.mean(1)).all()
        assert np.mean(found.activation > found.random_activation.max(1)) >= 0.9
        assert found.images.min() >= 0 and found.images.max() <= 1
    assert maximisation._maximise._cache_size() == compilations + 1
    found = maximisation.maximise(model, weights, 'head', np.arange(10), (8, 8, 1),
                                  jax.random.key(0))
    # Higher than the class's highest score among 64 test images, for most classes.
    assert np.mean(found.activation > network.logits(TEST.images[:64]).max(0)) > 0.5
    assert (found.activation > found.random_activation.max(1)).all()


def test_noise_is_as_long_as_the_images(weights):
    images = TEST.images[:5] / np.float32(255)
    noise = maximisation.noise_of_length(jax.random.key(0), images, weights[1])
    lengths = [np.linalg.norm(np.reshape(normalized(x, weights[1]), (5, -1)), axis=1)
               for x in (images, noise)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)


def test_directions_are_as_long_as_the_filters():
    rng = np.random.default_rng(0)
    params = {'stage1': {'block1': {'conv1': {'kernel': rng.normal(size=(3, 3, 4, 8))},
                                    'norm1': {'scale': np.ones(8), 'bias': np.ones(8)}},
                         'blocks': {'conv1': {'kernel': rng.normal(size=(2, 3, 3, 8, 8))}}},
              'head': {'kernel': rng.normal(size=(8, 10)), 'bias': np.ones(10)}}
    params = jax.tree.map(jnp.float32, params)
    found = jax.jit(loss_surface.filter_normalized)(jax.random.key(0), params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for name, axes in (('block1', (0, 1, 2)), ('blocks', (1, 2, 3))):
        lengths = [np.sqrt(np.square(tree['stage1'][name]['conv1']['kernel']).sum(axes))
                   for tree in (found, params)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found['head']['kernel'], axis=0),
                               np.linalg.norm(params['head']['kernel'], axis=0), rtol=1e-5)
    for still in (*found['stage1']['block1']['norm1'].values(), found['head']['bias']):
        assert (still == 0).all()


def test_the_centre_of_the_surface_is_the_network(model, weights):
    images, labels, key = TRAIN.images[:64], TRAIN.labels[:64], jax.random.key(1)
    compilations = loss_surface._surface._cache_size()
    loss_surface.loss_surface(model, weights, images, labels, jax.random.key(0), points=3,
                              radius=0.3)
    found = loss_surface.loss_surface(model, weights, images, labels, key, points=3, radius=0.5)
    assert loss_surface._surface._cache_size() == compilations + 1
    scores = jax.jit(functools.partial(outputs, model))

    def mean_loss(variables):
        probabilities = jax.nn.softmax(scores((variables, weights[1]), images))
        return -np.log(probabilities[np.arange(len(labels)), labels]).mean()

    np.testing.assert_allclose(found.loss[1, 1], mean_loss(weights[0]), rtol=1e-4)
    wrong = scores(weights, images).argmax(1) != labels
    np.testing.assert_allclose(found.error[1, 1], 100 * wrong.mean(), rtol=1e-5)
    assert (np.delete(found.loss.ravel(), 4) > found.loss[1, 1]).all()
    # And a corner is the network whose filters have moved by half their lengths.
    params, direction = weights[0]['params'], jax.jit(loss_surface.filter_normalized)
    first, second = (direction(k, params) for k in jax.random.split(key))
    moved = jax.tree.map(lambda p, a, b: p + 0.5 * a - 0.5 * b, params, first, second)
    np.testing.assert_allclose(found.loss[2, 0], mean_loss({**weights[0], 'params': moved}),
                               rtol=1e-3)


def test_an_even_grid_has_no_centre(model, weights):
    with pytest.raises(ValueError, match='must be odd, got 4'):
        loss_surface.loss_surface(model, weights, TRAIN.images[:4], TRAIN.labels[:4],
                                  jax.random.key(0), points=4)


def test_a_bowl_has_one_local_minimum():
    x = np.linspace(-1, 1, 9)
    assert loss_surface.local_minima(x[:, None] ** 2 + x ** 2) == 1
    assert loss_surface.local_minima(np.cos(2 * np.pi * x)[:, None] + x ** 2) == 2


def test_filters_are_described():
    found = np.zeros((4, 3, 3, 1), np.float32)
    found[0] = 1  # an average
    found[1] = -2  # the same, opposite
    found[2, :, 0], found[2, :, 2] = 1, -1  # a vertical edge
    found[3, 0, 0] = 0.01  # weak
    numbers = filters.statistics(found)
    assert numbers['weak'] == 1 and numbers['alike'] == 1
    np.testing.assert_allclose(numbers['mean_share'], (1 + 1 / 9) / 2)
    tiles = filters.as_images(found)
    assert (tiles[0] == 255).all() and (tiles[1] == 0).all() and (tiles[2, :, 1] == 128).all()


SECTIONS = {
    'filters': lambda network: filters.section(network),
    'gradcam': lambda network: gradcam.section(network, TEST.images[:20], TEST.labels[:20]),
    'integrated_gradients': lambda network: integrated_gradients.section(
        network, TEST.images[:10], TEST.labels[:10]),
    'maximisation': lambda network: maximisation.section(network, TEST.images[:64]),
    'loss_surface': lambda network: loss_surface.section(
        {'residual': network, 'plain': network}, TRAIN.images[:64], TRAIN.labels[:64], points=3),
}


DEAR = ('maximisation', 'integrated_gradients')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow if name in DEAR else ())
    for name in SECTIONS])
def test_a_section_tells_numbers_and_describes_every_picture(network, name):
    section = SECTIONS[name](network)
    assert set(section.charts) == set(section.descriptions)
    assert section.numbers and all(np.isfinite(x) for x in section.numbers.values())
    assert any(digit in section.caption for digit in '0123456789')
    for chart in section.charts.values():
        assert chart.to_dict()['data']['values'] or chart.to_dict()['datasets']
    for picture in section.pictures.values():
        assert picture.alt and picture.pixels.dtype == np.uint8
        assert picture.pixels.ndim == 3 and picture.pixels.shape[2] == 3
    for heads, rows in section.tables.values():
        assert all(len(row) == len(heads) for row in rows)
