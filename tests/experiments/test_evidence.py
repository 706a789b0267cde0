"""Explanations point to where the evidence lies, in a network that was made by hand."""

import functools

import jax
import numpy as np
import pytest

import resnet_jax
from experiments.seeing import deletion, gradcam, pictures
from experiments.seeing.activations import intervene, on_device
from experiments.seeing.integrated_gradients import ClassScore, integrated_gradients
from tests.experiments import hand_set
from tests.weights.networks import images, store

pytestmark = pytest.mark.slow

PATCHES = {hand_set.RED: (slice(4, 12), slice(4, 12)),
           hand_set.GREEN: (slice(20, 28), slice(16, 24))}


@pytest.fixture(scope='module')
def network():
    return hand_set.network()


@pytest.mark.parametrize('stage', ['stage2', 'stage3'])
@pytest.mark.parametrize('label', PATCHES)
def test_grad_cam_points_at_the_patch_of_the_class(network, stage, label):
    compilations = gradcam._grad_cam._cache_size()
    found = gradcam.grad_cam(network.model, on_device(network), hand_set.images(),
                             np.array([label]), stage)
    assert gradcam._grad_cam._cache_size() <= compilations + 1
    size = {'stage2': 16, 'stage3': 8}[stage]
    assert found.shape == (1, size, size)
    evidence = np.zeros((hand_set.SIZE, hand_set.SIZE), bool)
    evidence[PATCHES[label]] = True
    assert found.min() >= 0  # green speaks against red, and is cut off
    np.testing.assert_array_equal(found[0] > 0, evidence[::32 // size, ::32 // size])


def test_integrated_gradients_lie_in_the_patch_and_in_its_colour(network):
    found = integrated_gradients(ClassScore(network.model), on_device(network),
                                 np.array([hand_set.GREEN]), hand_set.images())
    values = found.values[0]
    assert found.gap[0] < 1e-4
    inside = values[PATCHES[hand_set.GREEN]][..., 1].sum()
    np.testing.assert_allclose(inside, np.abs(values).sum(), rtol=1e-5)
    np.testing.assert_allclose(inside, network.logits(hand_set.images())[0, hand_set.GREEN],
                               rtol=1e-4)


def test_taking_the_evidence_away_takes_the_class_away(network):
    red = np.zeros((1, hand_set.SIZE, hand_set.SIZE))
    red[0][PATCHES[hand_set.RED]] = 1
    scores = network.predict(hand_set.images())[0]
    share = 64 / hand_set.SIZE ** 2  # one patch
    for importance, left in ((red, 0.0), (-red, scores[hand_set.RED])):
        curve = deletion.deletion_curve(network, hand_set.images(), np.array([hand_set.RED]),
                                        importance, (0.0, share, 1.0))
        np.testing.assert_allclose(curve, [scores[hand_set.RED], left, 0.1], atol=0.02)


@pytest.mark.parametrize('family, depth, size, stage, shape', [
    ('cifar', 8, 32, 'stage2', (1, 16, 16)), ('vgg', 16, 224, 'stage5', (1, 7, 7))])
def test_the_features_are_those_of_the_network(tmp_path, family, depth, size, stage, shape):
    store(tmp_path, size=size, family=family, depth=depth, width=4, shortcut='B')
    network = resnet_jax.load(tmp_path)
    x = images(1, size, size, 3)
    scores, features = jax.jit(functools.partial(intervene, network.model, stage=stage))(
        on_device(network), x)
    np.testing.assert_allclose(features, network.features(x, stage), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores, network.logits(x), rtol=1e-3, atol=1e-5)
    assert gradcam.grad_cam(network.model, on_device(network), x, np.array([0]),
                            stage).shape == shape


def test_a_stage_that_is_not_there_is_told(network):
    with pytest.raises(ValueError, match="no stage 'stage9'"):
        jax.eval_shape(functools.partial(intervene, network.model, stage='stage9'),
                       on_device(network), hand_set.images())


def test_a_mosaic_keeps_every_tile():
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    picture = pictures.mosaic(tiles, 3)
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    for i in range(5):
        top, left = 1 + 3 * (i // 3), 1 + 4 * (i % 3)
        assert (picture[top:top + 2, left:left + 3] == i).all()
    assert (picture[0] == pictures.PAPER).all()


def test_the_rows_of_a_mosaic_are_named_in_a_margin_and_keep_their_tiles():
    tiles = np.full((4, 64, 64, 3), 200, np.uint8)
    plain = pictures.mosaic(tiles, 2)
    named = pictures.mosaic(tiles, 2, ['stage 1', 'best test image'])
    margin = named.shape[1] - plain.shape[1]
    assert named.shape[0] == plain.shape[0] and margin > 0
    np.testing.assert_array_equal(named[:, margin:], plain)
    for row in np.split(named[:-4, :margin], 2):
        assert row.min() < 60  # letters, on grey


def test_summing_over_windows_keeps_the_total_and_needs_no_multiple():
    maps = np.arange(2 * 10 * 7, dtype=float).reshape(2, 10, 7)
    found = pictures.summed(maps, 4)
    assert found.shape == (2, 4, 3)
    np.testing.assert_allclose(found.sum((1, 2)), maps.sum((1, 2)))
    assert found[0, 0, 0] == maps[0, :3, :3].sum()
    np.testing.assert_array_equal(pictures.summed(maps, 10), maps)


def test_one_strong_pixel_pales_the_others_unless_a_percentile_is_given():
    maps = np.full((1, 10, 10), 0.1)
    maps[0, 0, 0] = 10
    pale, strong = pictures.signed(maps)[0, 5, 5], pictures.signed(maps, 98)[0, 5, 5]
    assert pale[1] > 235 and strong[1] == 0
    assert tuple(pictures.signed(maps, 98)[0, 0, 0]) == tuple(pictures.DIVERGING[-1])


def test_zero_is_white_and_the_signs_are_blue_and_red():
    blue, white, red = pictures.signed(np.array([[[-2.0, 0.0, 1.0]]]))[0, 0].astype(int)
    assert len(set(white)) == 1 and blue[2] > blue[0] and red[0] > red[2]


def test_predictions_are_named_and_wrong_ones_marked():
    assert pictures.predictions(('cat', 'dog'), np.array([0, 0]), np.array([0, 1])) == (
        'Predicted: cat, cat (wrong: dog).')
