"""Made-up images for tests and benchmarks."""

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.sizes import image_size
from resnet_jax.data.sources import ArraySource, labelled

IMAGES = {'train': 1024, 'test': 250}


def create(config: ConfigDict, split: str) -> ArraySource:
    """See `resnet_jax.data.registry`; reads `data.image_size` and `model.num_classes`."""
    return synthetic(split, image_size(config.data), config.model.num_classes)


def count_classes(config: ConfigDict) -> None:
    """As many as the config says."""
    del config


def synthetic(split: str, size: tuple[int, int], num_classes: int) -> ArraySource:
    """Made-up images, uint8 [N, *size, 3].

    Every class is a fixed smooth pattern; an image is its class's pattern under noise. A network
    can therefore learn it, and a test can see that it does.
    """
    n, (height, width) = IMAGES[split], size
    sides = [height] if height == width else [height, width]
    rng = np.random.Generator(np.random.PCG64([n, *sides, num_classes]))
    patterns = np.random.Generator(np.random.PCG64(num_classes)).uniform(
        64, 192, (num_classes, 4, 4, 3))
    rows, columns = (np.arange(side) * 4 // side for side in size)
    labels = rng.integers(num_classes, size=n)
    images = np.empty((n, height, width, 3), np.uint8)
    for i, label in enumerate(labels):
        noise = rng.normal(0, 40, images.shape[1:])
        images[i] = np.clip(patterns[label][rows][:, columns] + noise, 0, 255)
    return labelled(images, labels, num_classes, f'synthetic/{split}')
