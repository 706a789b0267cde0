"""ArrayRecord shards: the encoded images of a split in a few large files, with random access.

All splits of a dataset share a folder: `train-00003-of-00016.array_record`, … and `train.json`,
which describes them. A record is the label (int32, little-endian), the length of the image's name
(uint16), the name in UTF-8 and the encoded image. ArrayRecord stores a checksum with every record,
so damage is detected on reading.
"""

import json
import pathlib
import struct

import grain
import numpy as np

from resnet_jax.data.sources import Item, digest
from resnet_jax.errors import UserError

FORMAT = 1
HEADER = struct.Struct('<iH')
# One image a group: a random read then decompresses nothing but that image, which is compressed
# already.
WRITER_OPTIONS = 'group_size:1,uncompressed'
PREPARE = 'python -m resnet_jax.data.prepare'


def pack(item: Item) -> bytes:
    """A record of an item whose image is encoded."""
    name = item.name.encode()[-65535:]
    return HEADER.pack(item.label, len(name)) + name + item.image


def unpack(record: bytes) -> Item:
    """The item of a record."""
    label, length = HEADER.unpack_from(record)
    start = HEADER.size + length
    return Item(record[start:], label, record[HEADER.size:start].decode(errors='replace'))


def shard_name(split: str, index: int, num_shards: int) -> str:
    return f'{split}-{index:05d}-of-{num_shards:05d}.array_record'


class Shards:
    """One prepared split; items hold the encoded images.

    Attributes:
      num_classes: labels are in [0, num_classes).
      class_names: of the labels, in order.
      fingerprint: of the shards' checksums.
      info: the description in `split.json`.
    """

    def __init__(self, path: str, split: str):
        root = pathlib.Path(path).expanduser()
        file = root / f'{split}.json'
        if not path or not file.is_file():
            raise UserError(f'{path!r} holds no prepared split {split!r}: data.path must be the '
                            f'--output of `{PREPARE}`, which writes it.')
        try:
            self.info = json.loads(file.read_text())
            shards = self.info['shards']
            if self.info['format'] != FORMAT:
                raise UserError(f'{file} has format {self.info["format"]}, and this version '
                                f'reads {FORMAT}: prepare it again with `{PREPARE}`.')
            self.class_names = tuple(self.info['class_names'])
            self.num_classes = len(self.class_names)
            self.fingerprint = digest(self.class_names, [x['checksum'] for x in shards])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{file} is damaged: prepare it again with `{PREPARE}`.') from error
        self._files = [root / shard['name'] for shard in shards]
        for shard, path in zip(shards, self._files, strict=True):
            size = path.stat().st_size if path.is_file() else 0
            if size != shard['bytes']:
                raise UserError(f'{path} has {size} bytes and not {shard["bytes"]}: it was cut '
                                f'short or replaced; run `{PREPARE}` again, which writes only '
                                'what is missing.')
        # Where each shard's records start among all.
        self._starts = np.cumsum([0] + [shard['num_images'] for shard in shards])
        self._records = grain.sources.ArrayRecordDataSource([str(x) for x in self._files])
        if len(self._records) != self._starts[-1]:
            raise UserError(f'{file} promises {self._starts[-1]} images, and the shards hold '
                            f'{len(self._records)}: prepare it again with `{PREPARE}`.')

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Item:
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        name = f'{self._files[shard]}[{index - self._starts[shard]}]'
        try:
            item = unpack(self._records[index])
        except Exception as error:
            raise UserError(f'{name} cannot be read: the shard is damaged; run `{PREPARE} '
                            '--verify` to see which are.') from error
        if not 0 <= item.label < self.num_classes:
            raise UserError(f'{name} has the label {item.label}, which is not in '
                            f'[0, {self.num_classes}).')
        return item._replace(name=f'{name} ({item.name})')
