"""Faster R-CNN: which parameters it has, what its shortcuts compute, and that images stay apart."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.distributed.sharding import create_mesh
from resnet_jax.models import detectors, rcnn
from resnet_jax.models.blocks import BottleneckBlock
from resnet_jax.models.c4 import FasterRCNNC4
from resnet_jax.models.detectors import Settings
from resnet_jax.tasks.detection import inference
from resnet_jax.xla import hlo

SIZES = np.int32([[32, 32], [24, 32], [32, 20], [20, 20]] * 2)  # height, width; canvas 32 x 32


def config_of(family='imagenet', depth=50, **detector):
    config = config_lib.default()
    config.model.family, config.model.depth, config.model.num_classes = family, depth, 80
    config.model.unroll = False
    for name, value in detector.items():
        config.model.detector[name] = value
    return config


def tiny(**detector):
    """A detector of stride 2 for images of 32 x 32 pixels."""
    config = config_of('cifar', 8, **{
        'anchor_sizes': (8, 16), 'rpn_features': 8, 'rpn_pre_nms': (64, 64),
        'rpn_post_nms': (16, 16), 'roi_size': 4, 'score_threshold': 0.2, 'detections': 20,
        **detector})
    config.model.width, config.model.shortcut, config.model.num_classes = 4, 'A', 3
    return rcnn.create(config)


def bottlenecks(kind=FasterRCNNC4, **settings):
    """A detector of stride 4 whose last stage has a bottleneck with its stride in front."""
    return kind(block=BottleneckBlock, stage_sizes=(1, 1), stem_kind='imagenet', width=4,
                num_classes=3, settings=Settings(anchor_sizes=(8,), rpn_features=8, **settings))


def pictures(sizes=SIZES, channels=3):
    x = np.random.default_rng(0).normal(size=(len(sizes), 32, 32, channels)).astype(np.float32)
    return np.asarray(inference.blanked(x, sizes))


def init(model, seed=0):
    """Random variables; scores and deltas are larger than at the start of training."""
    variables = jax.jit(lambda: model.init(
        jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), train=False))()
    params = dict(variables['params'])
    params['box'] = jax.tree.map(lambda leaf: 30 * leaf, params['box'])
    params['rpn'] = jax.tree.map(lambda leaf: 10 * leaf, params['rpn'])
    return {**variables, 'params': params}


def regions(count=6, images=2):
    corner = np.random.default_rng(1).uniform(0, 16, (images, count, 2))
    side = np.random.default_rng(2).uniform(3, 16, (images, count, 2))
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


def shapes(model):
    tree = jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    return flax.traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize(('depth', 'classes', 'sizes', 'count'), [
    (50, 80, None, 33_844_764), (101, 80, None, 52_836_892),
    (50, 20, (128, 256, 512), 33_199_314), (101, 20, (128, 256, 512), 52_191_442)])
def test_numbers_of_parameters(depth, classes, sizes, count):
    config = config_of(depth=depth, anchor_sizes=sizes)
    config.model.num_classes = classes
    own = shapes(rcnn.create(config))
    assert sum(leaf.size for path, leaf in own.items() if path.startswith('params/')) == count
    # A classifier's weights start a detector, path by path.
    others = shapes(models.create(config.model))

    def shared(leaves):
        return {path: leaf.shape for path, leaf in leaves.items()
                if path.split('/')[1].startswith(('stem', 'stage'))}

    assert shared(own) == shared(others)
    assert {path.split('/')[1] for path in set(own) - set(shared(own))} == {'rpn', 'box'}


class WithAllBins(FasterRCNNC4, kw_only=True):
    """Computes every bin, and then skips every other one by the stride of the last stage."""

    skips_bins = False


def test_every_other_bin_is_enough_for_a_bottleneck_with_its_stride_in_front():
    some, every = bottlenecks(roi_size=14), bottlenecks(WithAllBins, roi_size=14)
    assert some.skips_bins
    assert not bottlenecks(roi_size=14).clone(stride_in='v1.5').skips_bins
    variables = init(some)
    images = pictures(SIZES[:2])

    @functools.partial(jax.jit, static_argnums=0)
    def pooled(model):
        return model.apply(
            variables, images, regions(), method=lambda module, x, r: module.describe(
                module.pool(module.trunk(x, train=False), r, train=False), train=False))

    got, expected = pooled(some), pooled(every)
    assert got.shape == (2, 6, 32)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_global_context_joins_the_features_of_the_whole_image_to_those_of_each_region():
    without, model = bottlenecks(roi_size=6), bottlenecks(roi_size=6, context=True)
    own, others = (shapes(m)['params/box/score/kernel'].shape for m in (model, without))
    assert (own, others) == ((64, 4), (32, 4))
    variables = init(model)
    sizes, images = SIZES[:2], pictures(SIZES[:2])
    whole = np.float32([[[0, 0, width, height]] for height, width in sizes])

    @jax.jit
    def run():
        features = model.apply(variables, images, train=False, method='trunk')
        pool = functools.partial(
            model.apply, variables, features,
            method=lambda module, x, r: module.describe(
                module.pool(x, r, train=False), train=False))
        heads = model.apply(variables, features, regions(), sizes, train=False, method='heads')
        return heads, pool(regions()), pool(whole)

    (scores, deltas), own, context = run()
    assert np.abs(context[0] - context[1]).max() > 0.01
    joined = np.concatenate([own, np.repeat(context, 6, 1)], -1)
    box = variables['params']['box']
    for got, layer in ((scores, box['score']), (deltas.reshape(2, 6, -1), box['delta'])):
        np.testing.assert_allclose(got, joined @ layer['kernel'] + layer['bias'], rtol=1e-4,
                                   atol=1e-4)


@pytest.fixture(scope='module')
def detect():
    return jax.jit(inference.detect, static_argnums=0)


@pytest.mark.parametrize('preset', detectors.PRESETS)
def test_every_preset_detects(preset, detect):
    model = tiny(preset=preset, rpn_min_size=2.0)
    found = jax.device_get(detect(model, init(model), pictures(), SIZES))
    assert found.boxes.shape == (8, 20, 4)
    assert (found.valid.sum(1) >= 3).all()
    for boxes, scores, classes, valid, size in zip(*found[:4], SIZES, strict=True):
        assert (np.diff(valid.astype(int)) <= 0).all()  # padding is last
        assert (np.diff(scores) <= 0).all()
        assert (scores[valid] > 0.2).all()
        assert (scores[~valid] == 0).all()
        assert set(classes[valid]) <= {0, 1, 2}
        assert (boxes[valid, :2] >= 0).all()
        assert (boxes[valid, 2:] <= size[::-1]).all()
        assert (boxes[valid, 2:] > boxes[valid, :2]).all()


def test_a_box_without_area_is_no_detection():
    """Such a box is what clipping leaves of one that lies outside of the image."""
    model = tiny()
    boxes = np.float32([[[[32, 4, 32, 20]] * 3, [[8, 4, 20, 20]] * 3, [[8, 4, 8.005, 20]] * 3]])
    probabilities = np.float32([[[0.9, 0.9, 0.9], [0.1, 0.6, 0.3], [0.9, 0.9, 0.9]]])
    found = jax.jit(lambda: rcnn.select(model, probabilities, boxes, np.ones((1, 3), bool)))()
    assert found.valid[0].tolist() == [True, True] + [False] * 7
    assert found.classes[0, :2].tolist() == [1, 2]
    np.testing.assert_array_equal(found.boxes[0, :2], [[8, 4, 20, 20]] * 2)


def test_eight_devices_detect_what_one_detects_and_never_communicate(detect):
    model = tiny()
    variables = init(model)
    expected = jax.device_get(detect(model, variables, pictures(), SIZES))
    mesh = create_mesh(config_lib.default())
    rows, copies = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    parallel = model.clone(mesh=mesh, num_devices=mesh.size)
    assert mesh.size == 8
    compiled = jax.jit(
        functools.partial(inference.detect, parallel), in_shardings=(copies, rows, rows),
        out_shardings=rows).lower(variables, pictures(), SIZES).compile()
    module = hlo.parse(compiled.as_text())
    assert module.open_loops > 0  # suppression
    assert hlo.collectives(module) == {}
    found = jax.device_get(compiled(*jax.device_put(
        (variables, pictures(), SIZES), (copies, rows, rows))))
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize(('name', 'value', 'sentence'), [
    ('preset', 'caffe', r"must be one of detectron2, paper, torchvision, got 'caffe'"),
    ('anchor_rule', 'ssd', r"must be one of detectron2, torchvision, paper, got 'ssd'"),
    ('anchor_sizes', (), r'must be positive numbers, such as \(32, 64\), got \(\)'),
    ('anchor_sizes', (32, -1), r'must be positive numbers, such as \(32, 64\), got \(32, -1\)'),
    ('anchor_ratios', 1.0, r'must be positive numbers, such as \(32, 64\), got 1.0'),
    ('rpn_features', 0, r'must be at least 1, got 0'),
    ('rpn_pre_nms', (2000,), r'must be two numbers of at least 1, for training and for testing, '
                             r'got \(2000,\)'),
    ('rpn_post_nms', (0, 10), r'must be two numbers of at least 1, for training and for testing, '
                              r'got \(0, 10\)'),
    ('rpn_nms', 1.5, r'must be from 0 to 1, got 1.5'),
    ('rpn_min_size', -1.0, r'must be at least 0, got -1.0'),
    ('rpn_thresholds', (0.7, 0.3), r'must be two numbers from 0 to 1, the smaller one first, '
                                   r'got \(0.7, 0.3\)'),
    ('roi_positive', 2.0, r'must be from 0 to 1, got 2.0'),
    ('roi_size', 0, r'must be at least 1, got 0'),
    ('box_weights', (10, 10, 5), r'must be four positive numbers, got \(10, 10, 5\)'),
    ('detections', 0, r'must be at least 1, got 0'),
])
def test_what_is_wrong_with_a_setting_is_one_sentence(name, value, sentence):
    with pytest.raises(models.ConfigError, match=rf'^model\.detector\.{name} {sentence}\.$'):
        rcnn.create(config_of('cifar', 8, **{name: value}))


def test_only_residual_networks_become_detectors():
    with pytest.raises(models.ConfigError, match=r'^a detector needs a residual network: '
                                                 r'model\.family must be imagenet or cifar, '
                                                 r'got vgg\.$'):
        rcnn.create(config_of('vgg', 16))
