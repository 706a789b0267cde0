"""RoIAlign is bilinear interpolation, and its gradient a few matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.regions.roi_align import axis_weights, roi_align
from tests.regions import reference

BOXES = np.float32([
    [8, 4, 56, 60], [3.3, 7.7, 90.1, 40.2], [-30, -20, 20, 30], [60, 50, 130, 120],  # and outside
    [0, 0, 96, 80], [10, 10, 10, 30], [40, 40, 40, 40], [50, 30, 20, 10],  # no area, inverted
    [-200, -200, -150, -150], [4, 4, 5, 5]])
VARIANTS = [(2, False), (0, True), *(  # points, aligned
    pytest.param(*x, marks=pytest.mark.slow) for x in ((2, True), (0, False), (1, True)))]
pool = jax.jit(roi_align, static_argnames=('bins', 'scale', 'points', 'aligned', 'step', 'chunk'))


def features(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, 10, 12, 3)).astype(dtype)


def batch(boxes):
    """Other boxes in the second image. No result hangs on rounding: no point at the border."""
    return np.stack([boxes, boxes[::-1] + np.float32(0.75)])


@pytest.mark.parametrize(('points', 'aligned'), VARIANTS)
def test_it_equals_interpolation_point_by_point(points, aligned):
    arguments = {'bins': 3, 'scale': 1 / 8, 'points': points, 'aligned': aligned}
    got = pool(features(), batch(BOXES), chunk=4, **arguments)
    for i in range(2):
        expected = reference.roi_align(features()[i], batch(BOXES)[i], **arguments)
        np.testing.assert_allclose(got[i], expected, atol=1e-5)


def test_in_float64_it_equals_interpolation_to_the_last_digits():
    arguments = {'bins': 3, 'scale': 1 / 8, 'points': 2, 'aligned': True}
    x, boxes = features(np.float64), batch(BOXES).astype(np.float64) + 0.1
    with jax.enable_x64(True):
        got = pool(x, boxes, **arguments)
    np.testing.assert_allclose(got[1], reference.roi_align(x[1], boxes[1], **arguments), atol=1e-12)


def test_detectron2s_own_example():
    """tests/layers/test_roi_align.py there: 25 numbers in a row, box (1, 1, 3, 3), 4 x 4 bins."""
    @jax.jit
    def pool(x, boxes):
        return [roi_align(x, boxes, bins=4, scale=1.0, points=0, aligned=aligned)[0, 0, :, :, 0]
                for aligned in (False, True)]

    x = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    for got, first in zip(pool(x, np.float32([[[1, 1, 3, 3]]])), (7.5, 4.5), strict=True):
        expected = first + 2.5 * np.arange(4)[:, None] + 0.5 * np.arange(4)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@functools.partial(jax.jit, static_argnames=('points', 'chunk'))
def gradients(x, boxes, dy, points=2, chunk=4):
    y, pullback = jax.vjp(functools.partial(
        roi_align, bins=3, scale=1 / 8, points=points, chunk=chunk), x, boxes)
    return pullback(dy.astype(y.dtype))


def test_the_gradient_is_the_transpose_of_interpolation():
    """Of 20 positions, each as a channel of the reference in float64."""
    x, boxes = np.zeros((1, 4, 5, 1), np.float32), BOXES[None] / 2
    dy = np.random.default_rng(1).normal(size=(1, len(BOXES), 3, 3, 1)).astype(np.float32)
    weights = reference.roi_align(np.eye(20).reshape(4, 5, 20), boxes[0], 3, 1 / 8, 0, True)
    expected = np.sum(dy[0] * weights, axis=(0, 1, 2)).reshape(4, 5)
    got, of_boxes = gradients(x + 1, boxes, dy, points=0)
    np.testing.assert_allclose(got[0, :, :, 0], expected, atol=1e-5)
    assert np.isfinite(of_boxes).all()  # also of boxes of no area


def test_no_gradient_needs_a_scatter_or_gather():
    dy = jnp.zeros((2, len(BOXES), 3, 3, 3))
    for points in (0, 2):
        jaxpr = str(jax.make_jaxpr(functools.partial(gradients, points=points))(
            features(), batch(BOXES), dy))
        assert 'dot_general' in jaxpr
        assert 'scatter' not in jaxpr and 'gather' not in jaxpr


def test_gradients_of_bfloat16_features_are_summed_in_float32():
    """A sum of ones in bfloat16 ends at 256."""
    boxes = np.tile(np.float32([[0, 0, 8, 8]]), (1, 300, 1))
    x = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.bfloat16)

    @jax.jit
    def transpose(boxes, dy):
        return jax.linear_transpose(functools.partial(
            roi_align, boxes=boxes, bins=1, scale=1 / 8, chunk=1), x)(dy)

    got, = transpose(boxes, np.ones((1, 300, 1, 1, 1), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), 300, rtol=0.01)


def test_every_second_bin_is_every_second_bin_and_chunks_change_nothing():
    arguments = {'bins': 3, 'scale': 1 / 8, 'points': 0, 'aligned': True}
    whole = pool(features(), batch(BOXES), chunk=4, **arguments)
    got = pool(features(), batch(BOXES), chunk=3, step=2, **arguments)
    np.testing.assert_allclose(got, whole[:, :, ::2, ::2], atol=1e-6)


def test_no_regions_give_no_features():
    got = jax.eval_shape(functools.partial(roi_align, bins=7, scale=1 / 16), features(),
                         np.zeros((2, 0, 4), np.float32))
    assert got.shape == (2, 0, 7, 7, 3)


def test_adaptive_sampling_is_limited_to_8_points():
    @jax.jit
    def weights(end):  # of the second interval, 20 positions lie in a bin
        return [axis_weights(np.zeros(2), end, 200, 10, points=points) for points in (0, 8, 4)]

    adaptive, eight, four = map(np.asarray, weights(np.float32([40, 200])))
    np.testing.assert_allclose(adaptive, [four[0], eight[1]], atol=1e-6)
    np.testing.assert_allclose(adaptive.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(('points', 'aligned'), VARIANTS)
def test_torchvision_computes_the_same(points, aligned):
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.ops import roi_align as torch_roi_align

    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 10, 12, 3)).astype(np.float32)
    dy = rng.normal(size=(2, len(BOXES), 3, 3, 3)).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch_roi_align(theirs, [*torch.tensor(batch(BOXES))], 3, 1 / 8, points, aligned)
    expected.backward(torch.tensor(dy.reshape(-1, 3, 3, 3).transpose(0, 3, 1, 2)))

    @jax.jit
    def ours(x):
        y, pullback = jax.vjp(lambda x: roi_align(
            x, batch(BOXES), bins=3, scale=1 / 8, points=points, aligned=aligned), x)
        return y, *pullback(dy)

    y, gradient = ours(x)
    np.testing.assert_allclose(np.reshape(y, (-1, 3, 3, 3)).transpose(0, 3, 1, 2),
                               expected.detach(), atol=5e-5)
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), theirs.grad, atol=5e-5)
