"""The feature pyramid: its levels, its proposals, and a small detector on it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.distributed.sharding import create_mesh
from resnet_jax.models import rcnn
from resnet_jax.models.fpn import FeaturePyramid
from resnet_jax.tasks.detection import inference
from resnet_jax.xla import hlo
from tests import jitted
from tests.models.test_rcnn import SIZES, init, pictures


def tiny(**detector):
    """A detector with levels of strides 1, 2, 4 and 8 for images of 32 x 32 pixels."""
    config = config_lib.default()
    config.model.family, config.model.depth, config.model.width = 'cifar', 8, 4
    config.model.num_classes, config.model.unroll, config.model.shortcut = 3, False, 'A'
    for name, value in {
            'kind': 'fpn', 'preset': 'torchvision', 'anchor_sizes': (4, 8, 16, 32),
            'rpn_features': 8, 'neck_features': 6, 'box_features': 10, 'rpn_pre_nms': (40, 40),
            'rpn_post_nms': (16, 16), 'roi_size': 3, 'score_threshold': 0.2, 'detections': 20,
            **detector}.items():
        config.model.detector[name] = value
    return rcnn.create(config)


def test_a_level_is_its_own_stage_and_the_repeated_level_above():
    maps = [np.random.default_rng(i).normal(size=(1, *size, 3)).astype(np.float32)
            for i, size in enumerate([(5, 8), (3, 4)])]
    neck = FeaturePyramid(3, jnp.float32)
    identity = jnp.eye(3)[None, None]
    one, centre = {'kernel': identity, 'bias': jnp.zeros(3)}, jnp.zeros((3, 3, 3, 3))
    three = {'kernel': centre.at[1, 1].set(jnp.eye(3)), 'bias': jnp.ones(3)}
    levels = jitted.apply(neck, {'params': {'lateral1': one, 'lateral2': one, 'output1': three,
                                            'output2': three}}, maps)
    above = np.repeat(np.repeat(maps[1], 2, 1), 2, 2)[:, :5]
    np.testing.assert_allclose(levels[0], maps[0] + above + 1, rtol=1e-6)
    np.testing.assert_allclose(levels[1], maps[1] + 1, rtol=1e-6)
    np.testing.assert_allclose(levels[2], (maps[1] + 1)[:, ::2, ::2], rtol=1e-6)


def test_proposals_are_suppressed_within_their_level_only():
    model = tiny(rpn_pre_nms=(2, 2), rpn_post_nms=(3, 3))
    boxes = np.float32([[4, 4, 20, 20], [4, 4, 20, 21], [0, 0, 9, 9]])
    levels = boxes, boxes[:1]  # the second level has the first box again
    scores = np.float32([[3, 2, 1, 2.5]])  # of which the best two of each level count
    found = jax.jit(rcnn.propose, static_argnums=0, static_argnames='train')(
        model, scores, np.zeros((1, 4, 4), np.float32), levels, SIZES[:1], train=False)
    assert found.valid.tolist() == [[True, True, False]]
    assert found.scores[0, :2].tolist() == [3, 2.5]
    np.testing.assert_allclose(found.boxes[0, :2], boxes[[0, 0]], atol=1e-5)


def test_training_and_testing_pool_the_same_though_in_different_ways():
    model = tiny()
    variables = init(model)
    boxes = np.float32([[[1, 2, 9, 30], [0, 0, 32, 32], [30, 30, 30, 30]]] * 2)

    images = pictures(SIZES[:2])

    @functools.partial(jax.jit, static_argnums=0)
    def heads(train):
        def run(module):
            features = module.trunk(images, train=False)
            return module.heads(features, boxes, SIZES[:2], train=train)

        return nn.apply(run, model)(variables)

    for got, expected in zip(heads(True), heads(False), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_eight_devices_detect_what_one_detects_and_never_communicate():
    model = tiny()
    variables = init(model)
    expected = jax.device_get(jax.jit(inference.detect, static_argnums=0)(
        model, variables, pictures(), SIZES))
    assert (expected.valid.sum(1) >= 3).all()
    mesh = create_mesh(config_lib.default())
    rows, copies = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    compiled = jax.jit(
        functools.partial(inference.detect, model.clone(mesh=mesh, num_devices=mesh.size)),
        in_shardings=(copies, rows, rows), out_shardings=rows,
    ).lower(variables, pictures(), SIZES).compile()
    assert hlo.collectives(hlo.parse(compiled.as_text())) == {}
    found = jax.device_get(compiled(*jax.device_put(
        (variables, pictures(), SIZES), (copies, rows, rows))))
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize(('field', 'sentence'), [
    ({'kind': 'ssd'}, "model.detector.kind must be one of c4, fpn, got 'ssd'."),
    ({'anchor_sizes': (32, 64)},
     'model.detector.anchor_sizes must be 4 sizes with model.detector.kind=fpn, one for each '
     'level, got (32, 64).')])
def test_what_is_wrong_with_a_setting_is_one_sentence(field, sentence):
    with pytest.raises(models.ConfigError) as error:
        tiny(**field)
    assert str(error.value) == sentence
