"""Digits as they appear in `resnet_jax.data.scenes`, one per image, for classification.

A network that has learnt to tell them apart is the start of a detector, as one trained on ImageNet
is for the paper's detectors.
"""

import functools

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import scenes
from resnet_jax.data.sources import ArraySource, labelled

SIDE = 24  # pixels of an image
IMAGES = {'train': 8192, 'test': 1024}
NEIGHBOURS = 2  # the most digits beside the one in the middle


def create(config: ConfigDict, split: str) -> ArraySource:
    """Opens a split; see `resnet_jax.data.registry`. No field of the config is used."""
    del config
    return scene_digits(split)


def count_classes(config: ConfigDict) -> int:
    """Ten digits."""
    del config
    return 10


@functools.cache
def scene_digits(split: str) -> ArraySource:
    """The images of a split, uint8 [N, 24, 24, 1], 10 classes: that of the digit in the middle."""
    images, labels = scenes.ink(split)
    made = [scenes.scene(images, labels, scenes.generator(split, IMAGES[split] + i), SIDE,
                         (1, 1 + NEIGHBOURS), middle=True) for i in range(IMAGES[split])]
    return labelled(np.stack([x.image for x in made]), np.concatenate([x.classes for x in made]),
                    10, f'scene_digits/{split}', class_names=[str(i) for i in range(10)])
