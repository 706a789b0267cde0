"""Reads TensorFlow Datasets prepared as ArrayRecord, without TensorFlow."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.sources import digest
from resnet_jax.data.types import Item, Tree
from resnet_jax.errors import UserError

SPLIT_NAMES = {'train': ('train',), 'test': ('test', 'validation', 'val')}
ON_DISK = True
# Images of the datasets that are small enough to lie on the devices.
IMAGES = {name: {'train': 50_000, 'test': 10_000} for name in ('cifar10', 'cifar100')}


def create(config: ConfigDict, split: str) -> 'Tfds':
    """See `resnet_jax.data.registry`; reads `tfds_name` and `path`."""
    return Tfds(config.data.tfds_name, config.data.path, split)


def num_images(config: ConfigDict, split: str) -> int | None:
    """Returns the number of images in a split; known for the CIFAR datasets only."""
    return IMAGES.get(config.data.tfds_name.split(':')[0], {}).get(split)


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: a class."""
    del config
    return {'label': np.int32(0)}


class Tfds:
    """One split of an image-classification builder; items hold the encoded images.

    Attributes:
      num_classes: labels are in [0, num_classes).
      class_names: of the labels, in order.
      fingerprint: of the builder's name, version and shard sizes.
    """

    def __init__(self, name: str, data_dir: str, split: str):
        """Opens what `tfds build --file_format=array_record` prepared.

        Args:
          name: of the builder, with a configuration and version where needed, such as 'cifar10' or
            'imagenet2012:5.1.0'.
          data_dir: the folder of all TFDS datasets, or of this one version; '' for TFDS's own.
          split: 'train' or 'test'; datasets without a test split are tested on 'validation'.

        Raises:
          UserError: TFDS is not installed, or the dataset is not prepared, or not one of images
            with labels.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError('data.source=tfds needs TensorFlow Datasets: run '
                            "`pip install -e '.[tfds]'`.") from error
        prepare = (f'run `tfds build {name} --file_format=array_record'
                   + (f' --data_dir={data_dir}' if data_dir else '') + '`.')
        builder = _builder(tfds, name, data_dir, prepare)
        features = builder.info.features
        if not {'image', 'label'} <= set(features or ()):
            raise UserError(f'the TFDS dataset {name!r} has no features `image` and `label`.')
        split_name = next((x for x in SPLIT_NAMES[split] if x in builder.info.splits), None)
        if split_name is None:
            raise UserError(f'the TFDS dataset {name!r} has no split {split}, only '
                            f'{", ".join(builder.info.splits)}.')
        self._name = f'{builder.info.full_name}/{split_name}'
        self.class_names = tuple(features['label'].names)
        self.num_classes = features['label'].num_classes
        info = builder.info.splits[split_name]
        self.fingerprint = digest(self._name, info.num_bytes, list(info.shard_lengths))
        try:
            # The bytes of the image file, and the label.
            self._records = builder.as_data_source(
                split=split_name, decoders={'image': tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise UserError(f'the TFDS dataset {name!r} is prepared in a format without random '
                            f'access: {prepare}') from error
        if len(self._records) != info.num_examples:
            raise UserError(f'{self._name} has {len(self._records)} images, but its description '
                            f'lists {info.num_examples}: delete its folder and {prepare}')

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Item:
        name = f'{self._name}[{index}]'
        try:
            example = self._records[index]
            image, label = example['image'], int(example['label'])
        except Exception as error:
            raise UserError(f'{name} cannot be read: its shard is damaged.') from error
        if not 0 <= label < self.num_classes:
            raise UserError(f'{name} has the label {label}, which is not in '
                            f'[0, {self.num_classes}).')
        return Item(image if isinstance(image, np.ndarray) else bytes(image),
                    {'label': np.int32(label)}, name)


def _builder(tfds, name: str, data_dir: str, prepare: str):
    if not name:
        raise UserError('data.tfds_name must name a TFDS dataset, such as cifar10.')
    folder = pathlib.Path(data_dir).expanduser() if data_dir else None
    try:
        if folder and (folder / 'dataset_info.json').is_file():
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(name, data_dir=folder, file_format='array_record')
        if not (pathlib.Path(builder.data_path) / 'dataset_info.json').is_file():
            raise UserError(f'the TFDS dataset {name!r} is not prepared in {builder.data_path}: '
                            + prepare)
        return builder
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f'TFDS knows no dataset {name!r}, and {data_dir or "its folder"!r} holds '
                        'none of that name.') from error
