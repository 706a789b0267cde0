"""RoIAlign on several levels: the level of a region, and two ways to compute the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.regions.pyramid import level_of, roi_align_levels
from resnet_jax.regions.roi_align import roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16)


def data():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 40 // 2**i, 56 // 2**i, 3)).astype(np.float32) for i in range(3)]
    corner = rng.uniform(-30, 200, (2, 50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 150, (2, 50, 2))], -1)
    boxes[:, 0], boxes[:, 1] = (10, 20, 10, 20), (50, 50, 20, 90)  # without area
    return maps, boxes.astype(np.float32), rng.integers(3, size=(2, 50))


def test_a_region_of_twice_the_side_lies_one_level_higher():
    sides = np.float32([0, 50, 111.9, 112, 200, 223.9, 224, 447, 448, 896, 5000])
    boxes = np.stack([0 * sides, 0 * sides, 2 * sides, sides / 2], -1)
    assert level_of(boxes, 4).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert level_of(boxes, 2).tolist() == [0, 0, 0, *[1] * 8]


def test_the_levels_are_torchvisions():
    poolers = pytest.importorskip('torchvision.ops.poolers', reason='needs torchvision')
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 900, (5000, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + rng.uniform(0.1, 900, (5000, 2))
    boxes[:3] = [(0, 0, 112, 112), (0, 0, 224, 224), (0, 0, 448, 448)]
    expected = poolers.LevelMapper(2, 5)([torch.from_numpy(boxes)]).numpy()
    np.testing.assert_array_equal(level_of(boxes, 4), expected)
    assert np.bincount(expected).min() > 50


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('points', [1, 2])
def test_gathering_and_multiplying_pool_each_region_from_its_own_level(points, aligned):
    maps, boxes, levels = data()
    fields = {'bins': 5, 'points': points, 'aligned': aligned}
    pools = [jax.jit(functools.partial(roi_align, scale=scale, **fields))(x, boxes)
             for x, scale in zip(maps, SCALES, strict=True)]
    expected = np.choose(levels[..., None, None, None], pools)
    assert expected.std() > 0.3
    for gathered in (False, True):
        got = jax.jit(functools.partial(
            roi_align_levels, scales=SCALES, gathered=gathered, **fields))(maps, boxes, levels)
        np.testing.assert_allclose(got, expected, atol=5e-5)


def test_the_gradient_without_gathering_has_no_scatter_and_is_the_same():
    maps, boxes, levels = data()
    weights = np.random.default_rng(1).normal(size=(2, 50, 4, 4, 3)).astype(np.float32)

    def loss(maps, gathered):
        return (weights * roi_align_levels(
            maps, boxes, levels, scales=SCALES, bins=4, gathered=gathered)).sum()

    gradients = [jax.jit(jax.grad(functools.partial(loss, gathered=gathered)))
                 for gathered in (False, True)]
    texts = [gradient.lower(maps).as_text() for gradient in gradients]
    assert ['scatter' in text for text in texts] == [False, True]
    for got, expected in zip(*(gradient(maps) for gradient in gradients), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_sampling_points_whose_number_depends_on_the_region_are_multiplied():
    maps, boxes, levels = data()
    got, expected = (jax.jit(functools.partial(
        roi_align_levels, scales=SCALES, bins=3, points=0, gathered=gathered))(maps, boxes, levels)
        for gathered in (True, False))
    assert jnp.array_equal(got, expected)
