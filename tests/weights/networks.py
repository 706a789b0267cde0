"""Random networks, stored as conversions are."""

import numpy as np

from resnet_jax import config as config_lib
from resnet_jax import weights
from resnet_jax.weights import names, stored
from tests.weights import random_weights


def store(folder, classes=None, size=32, channels=3, **changes) -> weights.Weights:
    """Random weights of a narrow network for 10 classes; CIFAR's ResNet-8 if not said otherwise."""
    config = config_lib.default()
    config.model = random_weights.fields(**{
        'family': 'cifar', 'depth': 8, 'shortcut': 'A', 'num_classes': 10, **changes})
    config.data.image_size, config.data.channels = size, channels
    variables = names.from_torch(
        random_weights.tensors(config.model, channels), config.model, channels)
    normalization = {'mean': np.linspace(.4, .6, channels, dtype=np.float32),
                     'std': np.linspace(.2, .4, channels, dtype=np.float32)}
    found = weights.Weights(config, variables, normalization, '')
    stored.write(folder, found, classes)
    return found


def images(*shape, seed=0) -> np.ndarray:
    """uint8, uniform."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
