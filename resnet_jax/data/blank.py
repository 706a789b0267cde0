"""Blank images in place of a dataset, for compiling steps without the data."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.sources import ArraySource, Source

# Images of the TFDS datasets that are small enough to lie on the devices.
SIZES = {name: {'train': 50_000, 'test': 10_000} for name in ('cifar10', 'cifar100')}


def blank(num_images: int, config: ConfigDict) -> ArraySource:
    """So many times the same black image, which takes the memory of one."""
    size = config.data.image_size
    return ArraySource(
        np.broadcast_to(np.uint8(0), (num_images, size, size, config.data.channels)),
        np.zeros(num_images, np.int32), config.model.num_classes, 'blank', 'blank')


def stand_in(config: ConfigDict, split: str, create: Callable[[ConfigDict, str], Source]) -> Source:
    """Blank images in the number of a split's, or the split itself where that is not known.

    Args:
      config: the field `data` is read, and the number of classes.
      split: 'train' or 'test'.
      create: opens the split.
    """
    name = config.data.tfds_name.split(':')[0]
    if config.data.source == 'tfds' and name in SIZES:
        return blank(SIZES[name][split], config)
    return create(config, split)
