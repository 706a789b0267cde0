"""The bytes of one record of a shard: an image, its target and its name. Reading runs no code.

Format 2, which is written: the length of a header (uint32, little-endian), the header, the arrays
of the target one after the other, and the encoded image. The header is JSON: `name`, and `target`,
a tree of `[dtype, shape]` in the place of the arrays, which follow in the order of their names.
dtypes are NumPy's, little-endian, such as '<f4'.

Format 1, which is read, and written only into splits that were begun in it: the label (int32,
little-endian), the length of the name (uint16), the name in UTF-8 and the encoded image.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from resnet_jax.data.types import Item, Tree, as_arrays

FORMAT = 2
LENGTH = struct.Struct('<I')
LABEL_AND_LENGTH = struct.Struct('<iH')
DTYPES = ('|b1', '|i1', '|u1', *(f'<{kind}' for kind in (
    'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f2', 'f4', 'f8')))


def pack(item: Item) -> bytes:
    """A record of format 2.

    Args:
      item: with an encoded image, and a target that is a dict of numbers, of arrays of a dtype in
        `DTYPES`, and of such dicts.

    Raises:
      TypeError: the target holds something else.
    """
    arrays = []

    def described(tree: Tree) -> dict[str, Any]:
        description = {}
        for name in sorted(tree):
            if isinstance(tree[name], dict):
                description[name] = described(tree[name])
                continue
            array = tree[name].astype(tree[name].dtype.newbyteorder('<'))
            if array.dtype.str not in DTYPES:
                raise TypeError(f'the target {name!r} of {item.name} has the dtype {array.dtype}, '
                                'which a record cannot hold')
            arrays.append(array.tobytes())
            description[name] = [array.dtype.str, array.shape]
        return description

    target = described(as_arrays(item.target))
    header = json.dumps({'name': item.name, 'target': target}, separators=(',', ':')).encode()
    return b''.join((LENGTH.pack(len(header)), header, *arrays, item.image))


def unpack(record: bytes) -> Item:
    """The item of a record of format 2.

    Raises:
      ValueError: the record is damaged.
    """
    [length] = LENGTH.unpack_from(record)
    header = json.loads(record[LENGTH.size:LENGTH.size + length])
    position = LENGTH.size + length

    def read(tree: Any) -> Iterator[tuple[str, Any]]:
        nonlocal position
        for name, value in tree.items():
            if isinstance(value, dict):
                yield name, dict(read(value))
                continue
            dtype, shape = value
            if dtype not in DTYPES or any(type(side) is not int or side < 0 for side in shape):
                raise ValueError(f'a record with an array {value}')
            count = math.prod(shape)
            # Fails where the record is too short.
            array = np.frombuffer(record, dtype, count, position).reshape(shape)
            position += array.nbytes
            yield name, array.copy()[()]  # numbers as such

    try:
        target = dict(read(header['target']))
        return Item(record[position:], target, str(header['name']))
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError('a record with another header') from error


def pack_format_1(item: Item) -> bytes:
    """A record of format 1, of an item with the target {'label': integer}."""
    name = item.name.encode()[-65535:]
    return LABEL_AND_LENGTH.pack(item.target['label'], len(name)) + name + item.image


def unpack_format_1(record: bytes) -> Item:
    """The item of a record of format 1, with the target {'label': int32}.

    Raises:
      struct.error: the record is damaged.
    """
    label, length = LABEL_AND_LENGTH.unpack_from(record)
    start = LABEL_AND_LENGTH.size + length
    name = record[LABEL_AND_LENGTH.size:start].decode(errors='replace')
    return Item(record[start:], {'label': np.int32(label)}, name)


READERS: dict[int, Callable[[bytes], Item]] = {1: unpack_format_1, FORMAT: unpack}
WRITERS: dict[int, Callable[[Item], bytes]] = {1: pack_format_1, FORMAT: pack}
