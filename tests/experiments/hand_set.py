"""A network whose evidence is known, wherever it is seen.

Class 3 is red, and green speaks against it; class 5 is green.
"""

import numpy as np

from resnet_jax import config as config_lib
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.weights import names
from tests.weights import random_weights

SIZE = 32  # pixels a side
RED, GREEN = 3, 5  # classes


def network() -> Classifier:
    """ResNet-8 whose blocks hand on their inputs: its features are the pixels, ever coarser."""
    config = config_lib.default()
    config.model = random_weights.fields(
        family='cifar', depth=8, width=4, shortcut='A', num_classes=10)
    config.data.image_size = SIZE
    variables = names.from_torch(random_weights.tensors(config.model), config.model, 3)
    params, stats = variables['params'], variables['batch_stats']
    for norms, value in ((params, 0.0), (stats, 0.0)):
        for stage in ('stage1', 'stage2', 'stage3'):
            for name in ('norm1', 'norm2'):
                for part in norms[stage]['block1'][name].values():
                    part[...] = value
    params['stem']['norm']['scale'][...] = 1
    params['stem']['norm']['bias'][...] = stats['stem']['norm']['mean'][...] = 0
    stats['stem']['norm']['var'][...] = 1
    params['stem']['conv']['kernel'][...] = 0
    params['stem']['conv']['kernel'][1, 1, [0, 1, 2], [0, 1, 2]] = 1
    # Option A pads 4 channels by 2 on either side, and then 8 by 4.
    params['head']['kernel'][...] = params['head']['bias'][...] = 0
    params['head']['kernel'][[6, 7, 7], [RED, RED, GREEN]] = 625, -125, 500
    return Classifier(config, variables, {
        'mean': np.zeros(3, np.float32), 'std': np.ones(3, np.float32)}, tuple('abcdefghij'))


def images() -> np.ndarray:
    """A red patch, upper left, and a green one, lower right: uint8 [1, 32, 32, 3]."""
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, 4:12, 4:12, 0] = image[0, 20:28, 16:24, 1] = 200
    return image
