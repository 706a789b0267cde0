"""What the benchmark of detectors gives to all contenders: settings, weights and an image."""

import functools
import zlib

import numpy as np

OBJECTS = 8  # in the image
RATE = 1e-5  # of learning


def config_of(settings: dict):
    """The config of the detector."""
    from resnet_jax import config as config_lib

    config = config_lib.default()
    config.task, config.batch_size, config.num_steps = 'detection', 1, 1000
    config.model.family, config.model.depth = 'imagenet', settings['depth']
    config.model.num_classes = settings['classes']
    config.model.stride_in = settings['stride_in']
    detector = config.model.detector
    detector.kind, detector.preset = settings['kind'], 'torchvision'
    wide = settings['kind'] == 'c4' and settings['depth'] > 34
    detector.rpn_features = 1024 if wide else 256
    detector.rpn_post_nms = (2000, settings['proposals'])
    detector.roi_batch = settings['regions']
    config.init.freeze, config.init.freeze_bn = ('norm', 'stem', 'stage1/'), True
    config.schedule.name, config.schedule.warmup = 'constant', 'none'
    config.schedule.learning_rate = RATE
    return config


def weights_of(settings: dict) -> dict[str, np.ndarray]:
    """Weights of the detector by path, the same in every process.

    Branches of blocks add little, so that features stay of the order of 1 through the layers, and
    class scores spread, so that there are detections to choose from.
    """
    import jax

    from resnet_jax.models import rcnn

    model = rcnn.create(config_of(settings))
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0),
                            jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        name = jax.tree_util.keystr(path[1:], simple=True, separator='/')
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith('kernel'):
            deviation = {'rpn/conv': 0.01, 'rpn/score': 0.01, 'rpn/delta': 0.01, 'box/score': 0.05,
                         'box/delta': 0.001}.get(name.removesuffix('/kernel'))
            gain = 1 if name.startswith('neck') else 2  # of layers with and without a ReLU
            deviation = deviation or (gain / np.prod(leaf.shape[-4:-1])) ** 0.5
            value = deviation * rng.normal(size=leaf.shape)
        else:
            value = np.ones(leaf.shape) * (0.0 if name.endswith(('bias', 'mean')) else 1.0)
            last = 'norm3' if settings['depth'] >= 50 else 'norm2'
            if name.endswith(f'{last}/scale'):
                value *= 0.3
        weights[name] = value.astype(np.float32)
    return weights


def tree(arrays: dict[str, np.ndarray]) -> dict[str, dict]:
    """Weights by path as Flax's variables."""
    from flax import traverse_util

    kinds = {'params': {}, 'batch_stats': {}}
    for path, value in arrays.items():
        kind = 'batch_stats' if path.endswith(('/mean', '/var')) else 'params'
        kinds[kind][path] = value
    return {kind: traverse_util.unflatten_dict(flat, sep='/') for kind, flat in kinds.items()}


def batch_of(settings: dict) -> dict[str, np.ndarray]:
    """An image with its objects, as `resnet_jax.tasks.detection.task.loss` takes it."""
    rng = np.random.default_rng(0)
    height, width = settings['height'], settings['width']
    coarse = rng.normal(size=(1, height // 16 + 1, width // 16 + 1, 3)).repeat(16, 1).repeat(16, 2)
    image = coarse[:, :height, :width] + 0.3 * rng.normal(size=(1, height, width, 3))
    side = rng.uniform(0.1, 0.5, (1, OBJECTS, 2)) * (width, height)
    start = rng.uniform(size=(1, OBJECTS, 2)) * ((width, height) - side)
    return {
        'image': image.astype(np.float32), 'size': np.array([[height, width]], np.int32),
        'boxes': np.concatenate([start, start + side], -1).astype(np.float32),
        'classes': rng.integers(0, settings['classes'], (1, OBJECTS)).astype(np.int32),
        'present': np.ones((1, OBJECTS), bool), 'ignore': np.zeros((1, OBJECTS), bool),
        'mask': np.ones(1, np.float32), 'draws': np.zeros((1, 2), np.uint32)}
