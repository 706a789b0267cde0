"""ArrayRecord shards: the encoded images of a split in a few large files, with random access.

All splits of a dataset share a folder: `train-00003-of-00016.array_record`, … and `train.json`,
which describes them; `resnet_jax.data.records` has the format of a record. ArrayRecord stores a
checksum with every record, so damage is detected on reading. The folder may lie in a bucket; see
`resnet_jax.data.shard_cache`.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import storage
from resnet_jax.data.records import READERS
from resnet_jax.data.shard_cache import ShardCache
from resnet_jax.data.sources import digest
from resnet_jax.data.types import Item, Tree
from resnet_jax.errors import UserError

# One image per group: a random read then decompresses nothing but that image, which is compressed
# already.
WRITER_OPTIONS = 'group_size:1,uncompressed'
PREPARE = 'python -m resnet_jax.data.prepare'
ON_DISK = True


def create(config: ConfigDict, split: str) -> 'Shards':
    """See `resnet_jax.data.registry`; reads `path`, and where it is a bucket `cache`."""
    return Shards(config.data.path, split, config.data.cache, config.data.bucket_cache_bytes)


def example_target(config: ConfigDict) -> Tree:
    """That of the first record, or a class where the shards are not there."""
    try:
        return create(config, 'train')[0].target
    except UserError:
        return {'label': np.int32(0)}


def shard_name(split: str, index: int, num_shards: int) -> str:
    return f'{split}-{index:05d}-of-{num_shards:05d}.array_record'


class Shards:
    """One prepared split; items hold the encoded images.

    Attributes:
      num_classes: labels are in [0, num_classes); None without classes.
      class_names: of the labels, in order, where they are known.
      fingerprint: of the shards' checksums.
      most_objects: the largest number of objects in an image; only where images have objects.
      category_ids: int32 [num_classes], by which the dataset itself calls the classes; only where
        it does.
      info: the description in `split.json`.
    """

    def __init__(self, path: str, split: str, cache: str = '', cache_bytes: int = 0):
        """Reads the description, and checks the sizes of the shards.

        Args:
          path: the folder.
          split: 'train' or 'test'.
          cache, cache_bytes: where shards of a bucket are kept; see `ShardCache`.

        Raises:
          UserError: the folder holds no such split, or a shard is missing or cut.
        """
        root = storage.path_of(path, of_data=True).expanduser()
        storage.check_reachable(root)
        file = root / f'{split}.json'
        if not path or not file.is_file():
            raise UserError(f'{path!r} holds no prepared split {split!r}: data.path must be the '
                            f'--output of `{PREPARE}`, which writes it.')
        try:
            self.info = json.loads(file.read_text())
            shards = self.info['shards']
            self._unpack = READERS.get(self.info['format'])
            self.class_names = tuple(self.info['class_names'])
            # Format 1 names every class.
            self.num_classes = self.info.get('num_classes', len(self.class_names) or None)
            self.fingerprint = digest(self.class_names, [x['checksum'] for x in shards])
            if 'most_objects' in self.info:
                self.most_objects = int(self.info['most_objects'])
            if 'category_ids' in self.info:
                self.category_ids = np.array(self.info['category_ids'], np.int32)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{file} is damaged: prepare it again with `{PREPARE}`.') from error
        if self._unpack is None:
            raise UserError(f'{file} has format {self.info["format"]}, and this version reads '
                            f'{" and ".join(map(str, READERS))}: prepare it again with '
                            f'`{PREPARE}`.')
        self._files = [root / shard['name'] for shard in shards]
        # Where each shard's records start among all.
        self._starts = np.cumsum([0] + [shard['num_images'] for shard in shards])
        if storage.in_bucket(root):
            self._records = _Fetched(
                ShardCache(root, shards, cache, cache_bytes), self._starts)
            return
        self._records = self._on_disk(file, shards)

    def _on_disk(self, file: storage.Path, shards: list[dict]) -> Sequence[bytes]:
        import grain

        for shard, path in zip(shards, self._files, strict=True):
            size = path.stat().st_size if path.is_file() else 0
            if size != shard['bytes']:
                raise UserError(f'{path} has {size} bytes instead of {shard["bytes"]}: it was '
                                f'truncated or replaced; run `{PREPARE}` again, which writes only '
                                'what is missing.')
        records = grain.sources.ArrayRecordDataSource([str(x) for x in self._files])
        if len(records) != self._starts[-1]:
            raise UserError(f'{file} lists {self._starts[-1]} images, but the shards hold '
                            f'{len(records)}: prepare it again with `{PREPARE}`.')
        return records

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Item:
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        name = f'{self._files[shard]}[{index - self._starts[shard]}]'
        try:
            item = self._unpack(self._records[index])
        except UserError:  # of a bucket
            raise
        except Exception as error:
            raise UserError(f'{name} cannot be read: the shard is damaged; run `{PREPARE} '
                            '--verify` to see which are.') from error
        labels = np.atleast_1d(item.target.get('classes', item.target.get('label', ())))
        if self.num_classes is not None and len(labels) and not (
                0 <= labels.min() <= labels.max() < self.num_classes):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
            raise UserError(f'{name} has the label {wrong}, which is not in '
                            f'[0, {self.num_classes}).')
        return item._replace(name=f'{name} ({item.name})')


class _Fetched:
    """The records of the shards of a bucket, each of which is opened when it is first needed."""

    def __init__(self, cache: ShardCache, starts: np.ndarray):
        """Opens nothing yet.

        Args:
          cache: fetches them.
          starts: index of the first record of each shard, and the number of all.
        """
        self._cache, self._starts = cache, starts
        self.__setstate__({})

    def __getstate__(self):
        return {'_cache': self._cache, '_starts': self._starts}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> bytes:
        import grain

        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        if shard not in self._open:
            file = self._cache.file(shard)  # without the lock: several are fetched at a time
            with self._lock:
                if shard not in self._open:
                    self._open[shard] = grain.sources.ArrayRecordDataSource([str(file)])
        return self._open[shard][index - int(self._starts[shard])]
