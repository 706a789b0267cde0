"""The cascade of boxes, masks and classes: masked features, and the boxes of its second round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import cascade, rcnn
from resnet_jax.models.errors import ConfigError
from resnet_jax.regions import boxes as boxes_lib
from tests import jitted
from tests.tasks.detection import tiny_cascade

REGIONS = np.float32([[[2, 3, 20, 22], [8, 0, 31, 15], [0, 0, 32, 32]]] * 2)
SIZES = np.int32([[32, 32], [30, 24]])


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@functools.cache
def network():
    """A cascade, its variables with larger scores than at the start, and features of images."""
    model = rcnn.create(tiny_cascade.get_config())
    variables = jax.jit(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False))()
    params = variables['params']
    rng = np.random.default_rng(0)
    for part, name, size in (('mask', 'score', 3), ('box', 'score', 1), ('box', 'delta', 0.3)):
        kernel = params[part][name]['kernel']
        params[part][name]['kernel'] = size * rng.normal(size=kernel.shape).astype(np.float32)
    images = rng.normal(size=(2, 32, 32, 1)).astype(np.float32)
    return model, variables, jitted.apply(model, variables, images, train=False, method='trunk')


def heads(regions, params=None):
    model, variables, features = network()
    return jitted.apply(
        model, {**variables, 'params': params or variables['params']}, features, regions,
        np.zeros((2, 2), np.int32), SIZES, train=False, method='heads_and_masks')


@pytest.mark.parametrize('cells', [(4, 4), (8, 8), (12, 8)])
def test_features_are_multiplied_by_the_mean_probability_of_their_cells(cells):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    scores = rng.normal(size=(2, 3, *cells)).astype(np.float32)
    expected = np.zeros(maps.shape)
    k, m = cells[0] // 4, cells[1] // 4
    for n, r, i, j in np.ndindex(2, 3, 4, 4):
        own = scores[n, r, k * i:k * (i + 1), m * j:m * (j + 1)]
        expected[n, r, i, j] = maps[n, r, i, j] * sigmoid(own).mean()
    np.testing.assert_allclose(cascade.masked(maps, scores), expected, rtol=1e-5, atol=1e-6)


def test_the_class_is_read_from_masked_features_joined_with_all_features():
    model, variables, features = network()
    maps = jitted.apply(model, variables, features, REGIONS, train=False, method='mask_maps')
    masks = jitted.apply(model, variables, maps, method='mask_scores')
    assert maps.shape == (2, 3, 2, 2, 32) and masks.shape == (2, 3, 4, 4)
    shares = sigmoid(masks).reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert shares.std() > 0.05
    joined = np.concatenate([np.asarray(maps).mean((2, 3)),
                             (np.asarray(maps) * shares[..., None]).mean((2, 3))], -1)
    scores, deltas, first = heads(REGIONS)
    layers = jax.device_get(variables['params']['box'])
    for found, layer in ((scores, layers['score']), (deltas.reshape(2, 3, -1), layers['delta'])):
        np.testing.assert_allclose(found, joined @ layer['kernel'] + layer['bias'], atol=1e-4)
    np.testing.assert_allclose(first, masks[:, :2], atol=1e-5)  # those of two classes are wanted
    without = jitted.apply(model, variables, features, REGIONS, SIZES, train=False, method='heads')
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), without,
                 (scores, deltas))


def test_a_mask_has_no_class():
    model, variables, features = network()
    found = [jitted.apply(model, variables, features, REGIONS, np.full((2, 3), label, np.int32),
                          method='mask_probabilities') for label in (0, 7)]
    np.testing.assert_array_equal(*found)


def test_the_gradient_of_classes_reaches_masks_and_the_boxes_of_the_first_round():
    model, variables, _ = network()
    params = variables['params']

    def of_classes(params, regions):
        scores, deltas, _ = heads(regions, params)
        return jax.nn.log_softmax(scores)[..., 0].sum(), (scores, deltas)

    gradient, (scores, deltas) = jax.jit(jax.grad(of_classes, has_aux=True))(params, REGIONS)
    assert float(abs(gradient['mask']['deconv']['kernel']).max()) > 1e-4

    def of_second_round(deltas):
        boxes = cascade.corrected(scores, deltas, REGIONS, SIZES, model.settings.box_weights)
        return of_classes(params, boxes)[0]

    gradient = np.asarray(jax.jit(jax.grad(of_second_round))(deltas))
    assert np.isfinite(gradient).all()
    best = np.asarray(scores)[..., :-1].argmax(-1)
    own = np.take_along_axis(gradient, best[..., None, None], 2)
    assert abs(own).max() > 1e-4 and abs(gradient).sum() == pytest.approx(abs(own).sum())


def test_a_corrected_box_is_that_of_the_most_probable_class_within_the_image():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 3, 5)).astype(np.float32)
    scores[..., 4] = 9  # the background does not count
    deltas = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    found = cascade.corrected(scores, deltas, REGIONS, SIZES, (10, 10, 5, 5))
    for n, r in np.ndindex(2, 3):
        label = scores[n, r, :4].argmax()
        box = boxes_lib.decode(deltas[n, r, label], REGIONS[n, r], (10, 10, 5, 5))
        height, width = SIZES[n]
        np.testing.assert_allclose(
            found[n, r], np.clip(box, 0, [width, height, width, height]), atol=1e-4)
    huge = jax.jit(jax.grad(lambda deltas: cascade.corrected(
        scores, deltas, REGIONS, SIZES, (10, 10, 5, 5)).sum()))(np.full_like(deltas, 1e6))
    assert np.isfinite(huge).all()


@pytest.mark.parametrize(('changed', 'sentence'), [
    ({'cascade': 4}, 'cascade must be 0, 3 or 5 stages, got 4'),
    ({'masks': False}, 'cascade=5 needs model.detector.kind=c4 and model.detector.masks=True'),
    ({'kind': 'fpn', 'anchor_sizes': (6, 10, 16, 24)}, 'cascade=5 needs model.detector.kind=c4'),
])
def test_what_cannot_be_a_cascade_is_refused(changed, sentence):
    config = tiny_cascade.get_config()
    config.model.detector.update(changed)
    with pytest.raises(ConfigError, match=sentence):
        rcnn.create(config)
