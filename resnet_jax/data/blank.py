"""Blank images in place of a dataset, for compiling steps without the data."""

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.registry import find
from resnet_jax.data.sizes import image_size
from resnet_jax.data.sources import ArraySource
from resnet_jax.data.types import Source, as_arrays


def is_known(config: ConfigDict) -> bool:
    """Whether the shapes of the examples of `config.data.source` are known without its data."""
    source = find(config.data.source)
    return getattr(source, 'ON_DISK', False) and hasattr(source, 'example_target')


def blank(num_images: int, config: ConfigDict) -> ArraySource:
    """A source that repeats a black image with a target of zeros, in the memory of one.

    Args:
      num_images: how many.
      config: `is_known`.
    """
    def repeated(shape: tuple[int, ...], dtype) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), (num_images, *shape))

    target = as_arrays(find(config.data.source).example_target(config))
    source = ArraySource(
        repeated((*image_size(config.data), config.data.channels), np.uint8),
        jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_images, *leaf.shape))  # masks
                     if leaf.dtype == object else repeated(leaf.shape, leaf.dtype), target),
        'blank', num_classes=config.model.num_classes, fingerprint='blank')
    if 'boxes' in target:
        source.most_objects = len(target['boxes'])
    return source


def stand_in(config: ConfigDict, split: str) -> Source:
    """Blank images in the number of a split's, or the split itself where that is not known.

    Args:
      config: the field `data` is read, and the number of classes.
      split: 'train' or 'test'.
    """
    source = find(config.data.source)
    num_images = source.num_images(config, split) if hasattr(source, 'num_images') else None
    if num_images is None or not is_known(config):
        return source.create(config, split)
    return blank(num_images, config)
