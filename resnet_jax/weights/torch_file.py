"""Reads files that torch.save wrote, without PyTorch and without running anything in them.

Since PyTorch 1.6 such a file is a zip archive, NAME/data.pkl beside the raw numbers of each
storage, NAME/data/KEY. Before, it was a series of pickles, and the storages came after them. Either
way the pickle refers to storages by keys, and says which part of one a tensor is; see
torch/serialization.py. Here as there with `weights_only=True`, tensors, containers, numbers and
texts are let in, and all else is refused before it is made; see `resnet_jax.weights.unpickle`.
"""

import io
import math
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from resnet_jax.weights import unpickle
from resnet_jax.weights.unpickle import Refused

_ZIP = b'PK\x03\x04'
_MAGIC, _PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # of files before 1.6
_STORAGES = {name + 'Storage': np.dtype(kind) for name, kind in {
    'Double': '<f8', 'Float': '<f4', 'Half': '<f2', 'BFloat16': ml_dtypes.bfloat16, 'Long': '<i8',
    'Int': '<i4', 'Short': '<i2', 'Char': 'i1', 'Byte': 'u1', 'Bool': '?'}.items()}
_DTYPES = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8',
           'bool')


class _Storage(NamedTuple):
    """A part of a storage, all of it but in files of the first years.

    Attributes:
      key: of the storage.
      kind: PyTorch's name of the type of storage.
      count: of numbers in the whole storage.
      start, stop: the part, in numbers.
    """

    key: str
    kind: str
    count: int
    start: int
    stop: int


class Tensor:
    """Stands for a tensor, whose numbers are found after the pickle has been read.

    Attributes:
      array: a numpy array of any strides, not to be written to; bfloat16 is that of ml_dtypes.
    """

    array: np.ndarray

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any):
        self.place = storage, offset, size, stride

    def __setstate__(self, state):
        raise Refused('it changes a tensor')


class _Dict(dict):
    """In place of an OrderedDict, without the attributes that PyTorch gives to a state dict."""

    def __setstate__(self, state):
        pass


class _Unpickler(unpickle.Unpickler):
    """Makes a `Tensor` in place of every tensor."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file, encoding='latin1')
        self.tensors: list[Tensor] = []
        self.storages: dict[str, _Storage] = {}
        self.allowed = {
            ('collections', 'OrderedDict'): _Dict,
            ('_codecs', 'encode'): unpickle.encode,
            ('torch', 'Size'): tuple,
            ('torch._utils', '_rebuild_tensor'): self._tensor,
            ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
            ('torch._utils', '_rebuild_parameter'): _parameter,
        }

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if module == 'torch' and (name in _STORAGES or name in _DTYPES):
            return name  # a text, which cannot be called or changed
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise Refused('it refers to something outside of the file')
        _, kind, key, _, count, *view = pid
        if kind not in _STORAGES or not _are_sizes((count,)):
            raise Refused('it has a storage of unknown type or size')
        whole = _Storage(str(key), kind, count, 0, count)
        if self.storages.setdefault(whole.key, whole) != whole:
            raise Refused(f'it has two different storages {whole.key[:100]!r}')
        if not view or view[0] is None:
            return whole
        _, start, length = view[0]
        if not _are_sizes((start, length)) or start + length > count:
            raise Refused('it has a part of a storage beyond its end')
        return whole._replace(start=start, stop=start + length)

    def _tensor(self, storage, offset, size, stride, requires_grad=False, hooks=None,
                metadata=None) -> Tensor:
        if metadata:
            raise Refused('it has a tensor that is conjugated or negated')
        tensor = Tensor(storage, offset, size, stride)
        self.tensors.append(tensor)
        return tensor

    def fill(self, content_of: Callable[[_Storage], np.ndarray], limit: int) -> None:
        """Finds the numbers of all tensors.

        Args:
          content_of: (a storage) -> all of its numbers.
          limit: of the numbers of all tensors together, since strides can repeat a number.
        """
        contents: dict[str, np.ndarray] = {}
        for tensor in self.tensors:
            storage, offset, size, stride = tensor.place
            if not isinstance(storage, _Storage) or not all(
                    isinstance(sides, tuple) and _are_sizes(sides)
                    for sides in (size, stride, (offset,))) or not len(size) == len(stride) <= 64:
                raise Refused('it has a tensor without a storage, a shape or strides')
            limit -= math.prod(size)
            if limit < 0:
                raise Refused('it has more numbers in its tensors than it has bytes')
            if storage.key not in contents:
                contents[storage.key] = content_of(self.storages[storage.key])
            tensor.array = _strided(contents[storage.key][storage.start:storage.stop], offset,
                                    size, stride)


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 2**48 for number in numbers)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused('it has a parameter that is no tensor')
    return data


def _strided(numbers: np.ndarray, offset: int, size: tuple[int, ...],
             stride: tuple[int, ...]) -> np.ndarray:
    """The tensor of this shape in a storage, strides and offset in numbers."""
    if 0 in size:
        return np.empty(size, numbers.dtype)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if last >= len(numbers):
        raise ValueError(f'a tensor reaches to number {last} of a storage of {len(numbers)}')
    return np.lib.stride_tricks.as_strided(
        numbers[offset:], size, [step * numbers.itemsize for step in stride], writeable=False)


def _numbers(content: bytes, storage: _Storage, is_big_endian: bool = False) -> np.ndarray:
    kind = _STORAGES[storage.kind]
    if len(content) != storage.count * kind.itemsize:
        raise ValueError(f'the storage {storage.key[:100]!r} has {len(content)} bytes instead of '
                         f'{storage.count} numbers of {kind.itemsize}')
    if is_big_endian:
        return np.frombuffer(content, f'>u{kind.itemsize}').astype(f'<u{kind.itemsize}').view(kind)
    return np.frombuffer(content, kind)


def load(path: pathlib.Path) -> Any:
    """What torch.save wrote, with a `Tensor` in place of every tensor and parameter.

    Raises:
      UserError: the file holds anything but tensors and plain containers, texts and numbers, is
        none of torch.save, or is cut short or damaged.
    """
    with unpickle.refusals(path, 'tensors', 'no file of torch.save'):
        with path.open('rb') as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
        return (_load_zip if is_zip else _load_old)(path)


def _load_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        folders = [name.partition('/')[0] for name in entries if name.count('/') == 1
                   and name.endswith('/data.pkl')]
        if len(folders) != 1:
            raise ValueError(f'it has {len(folders)} entries data.pkl instead of one')

        def read(name: str) -> bytes:
            entry = entries[f'{folders[0]}/{name}']
            # Before any of it is read: compressed, it could be of any size.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise Refused(f'its entry {entry.filename[:100]!r} is compressed, as torch.save '
                              'never does')
            return archive.read(entry)

        order = read('byteorder') if f'{folders[0]}/byteorder' in entries else b'little'
        if order not in (b'little', b'big'):
            raise ValueError(f'its numbers are in the order {order[:20]!r}')
        unpickler = _Unpickler(io.BytesIO(read('data.pkl')))
        content = unpickler.load()
        unpickler.fill(lambda storage: _numbers(read(f'data/{storage.key}'), storage,
                                                order == b'big'), path.stat().st_size)
    return content


def _load_old(path: pathlib.Path) -> Any:
    file = io.BytesIO(path.read_bytes())
    magic, protocol, _ = (_Unpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise ValueError('it does not begin as torch.save does')
    unpickler = _Unpickler(file)
    content = unpickler.load()
    contents = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack('<q', file.read(8))
        if count != storage.count:
            raise ValueError(f'the storage {key[:100]!r} has {count} numbers instead of '
                             f'{storage.count}')
        contents[key] = _numbers(file.read(count * _STORAGES[storage.kind].itemsize), storage)
    unpickler.fill(lambda storage: contents[storage.key], len(file.getbuffer()))
    return content
