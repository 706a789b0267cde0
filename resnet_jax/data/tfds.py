"""Reads TensorFlow Datasets prepared as ArrayRecord, without TensorFlow."""

import re

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import boxes
from resnet_jax.data.tfds_builder import Builder, image_of
from resnet_jax.data.tfds_objects import open_objects
from resnet_jax.data.types import Item, Source, Tree
from resnet_jax.errors import UserError

SPLIT_NAMES = {'train': ('train',), 'test': ('test', 'validation', 'val')}
ON_DISK = True
WITH_OBJECTS = ('voc', 'coco')
# Images of the datasets that are small enough to lie on the devices.
IMAGES = {name: {'train': 50_000, 'test': 10_000} for name in ('cifar10', 'cifar100')}


def create(config: ConfigDict, split: str) -> Source:
    """See `resnet_jax.data.registry`; reads `tfds_name` and `path`.

    Where images have objects, also `train_list`, `eval_list`, `bad_boxes` and `cache`; see
    `resnet_jax.data.tfds_objects`.
    """
    builder = Builder(config.data.tfds_name, config.data.path)
    return open_objects(builder, config, split) if builder.has_objects else Tfds(builder, split)


def count_classes(config: ConfigDict) -> int:
    """Counts the classes without reading a record."""
    return len(Builder(config.data.tfds_name, config.data.path).class_names)


def num_images(config: ConfigDict, split: str) -> int | None:
    """Returns the number of images in a split; known for the CIFAR datasets only."""
    return IMAGES.get(config.data.tfds_name.split(':')[0], {}).get(split)


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: a class, or one object."""
    name = re.split('[:/]', config.data.tfds_name)[0]
    return boxes.example_target() if name in WITH_OBJECTS else {'label': np.int32(0)}


class Tfds:
    """One split of an image-classification builder; items hold the encoded images.

    Attributes:
      num_classes: labels are in [0, num_classes).
      class_names: of the labels, in order.
      fingerprint: of the builder's name, version and shard sizes.
    """

    def __init__(self, builder: Builder, split: str):
        """Opens the split 'train' or 'test'; without a test split, 'test' is 'validation'.

        Raises:
          UserError: it is missing or damaged.
        """
        self._records = builder.open(builder.find_split(SPLIT_NAMES[split]))
        self.class_names, self.num_classes = builder.class_names, len(builder.class_names)
        self.fingerprint = self._records.fingerprint

    def __len__(self) -> int:
        return len(self._records.source)

    def __getitem__(self, index: int) -> Item:
        name, example = self._records.read(index)
        label = int(example['label'])
        if not 0 <= label < self.num_classes:
            raise UserError(f'{name} has the label {label}, which is not in '
                            f'[0, {self.num_classes}).')
        return Item(image_of(example), {'label': np.int32(label)}, name)
