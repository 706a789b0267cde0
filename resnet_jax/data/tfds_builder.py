"""Opens TensorFlow Datasets prepared as ArrayRecord, without TensorFlow."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.sources import digest
from resnet_jax.errors import UserError


class Builder:
    """What `tfds build --file_format=array_record` prepared.

    Attributes:
      name: as the user calls it.
      features: of a record.
      has_objects: whether images have objects, which then count, and not a label.
      class_names: of the labels of images or objects, in order.
      splits: the names of the splits.
    """

    def __init__(self, name: str, data_dir: str):
        """Opens a dataset.

        Args:
          name: of the builder, with a configuration and version where needed, such as 'cifar10' or
            'imagenet2012:5.1.0'.
          data_dir: the folder of all TFDS datasets, or of this one version; '' for TFDS's own.

        Raises:
          UserError: TFDS is not installed, or the dataset is not prepared, or not one of images
            with labels or objects.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError('data.source=tfds needs TensorFlow Datasets: run '
                            "`pip install -e '.[tfds]'`.") from error
        self.name, self._tfds = name, tfds
        self._prepare = (f'run `tfds build {name} --file_format=array_record'
                         + (f' --data_dir={data_dir}' if data_dir else '') + '`.')
        self._builder = _builder(tfds, name, data_dir, self._prepare)
        self.features = self._builder.info.features or {}
        self.has_objects = 'objects' in self.features
        part = getattr(self.features['objects'], 'feature', {}) if self.has_objects else (
            self.features)
        if 'image' not in self.features or not {
                'label', *(['bbox'] if self.has_objects else [])} <= set(part):
            raise UserError(f'the TFDS dataset {name!r} has no features `image` and `label`, or '
                            '`objects` with `bbox` and `label`.')
        self.class_names = tuple(part['label'].names)
        self.splits = tuple(self._builder.info.splits)

    def find_split(self, names: Sequence[str]) -> str:
        """The first of these names that is a split.

        Raises:
          UserError: none is.
        """
        for name in names:
            if name in self.splits:
                return name
        raise UserError(f'the TFDS dataset {self.name!r} has no split {" or ".join(names)}, only '
                        f'{", ".join(self.splits)}.')

    def open(self, split: str) -> 'Records':
        """The records of a split.

        Args:
          split: by TFDS's name, or several such as 'train+validation'.

        Raises:
          UserError: there is none, or it is not as the dataset's description says.
        """
        try:
            info = self._builder.info.splits[split]
        except (KeyError, ValueError) as error:
            raise UserError(f'the TFDS dataset {self.name!r} has no split {split!r}, only '
                            f'{", ".join(self.splits)}, which may be joined by +.') from error
        name = f'{self._builder.info.full_name}/{split}'
        try:
            # The bytes of the image file, and the other features.
            records = self._builder.as_data_source(
                split=split, decoders={'image': self._tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise UserError(f'the TFDS dataset {self.name!r} is prepared in a format without '
                            f'random access: {self._prepare}') from error
        if len(records) != info.num_examples:
            raise UserError(f'{name} has {len(records)} images, but its description lists '
                            f'{info.num_examples}: delete its folder and {self._prepare}')
        return Records(name, digest(name, info.num_bytes, list(info.shard_lengths)),
                       [str(path) for path in info.filepaths], records)


class Records(NamedTuple):
    """The records of a split.

    Attributes:
      name: of the split in error messages.
      fingerprint: of its name and shard sizes.
      files: the paths of the shards.
      source: TFDS's, of dicts of features.
    """

    name: str
    fingerprint: str
    files: list[str]
    source: Sequence[dict[str, Any]]

    def read(self, index: int) -> tuple[str, dict[str, Any]]:
        """The name of a record in error messages, and its features.

        Raises:
          UserError: it is damaged.
        """
        name = f'{self.name}[{index}]'
        try:
            return name, self.source[index]
        except Exception as error:
            raise UserError(f'{name} cannot be read: its shard is damaged.') from error


def image_of(example: dict[str, Any]) -> np.ndarray | bytes:
    """The encoded image of a record, or pixels where the builder keeps them."""
    image = example['image']
    return image if isinstance(image, np.ndarray) else bytes(image)


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
