"""Reads pickles of numpy arrays without running anything that a pickle asks for.

A pickle is a program: it names functions, and calls them. Here a name leads to one of a few
functions and classes below, which make arrays of numbers from bytes and cannot do anything else; no
function of numpy, of this program or of Python itself is reached. All other names are refused
before anything is called.
"""

import collections
import contextlib
import io
import pathlib
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import UserError, reason

_NUMBERS = re.compile(r'b1|[iu][1248]|f[248]')  # what numpy calls the types of numbers
_ORDERS = ('<', '>', '=', '|')  # of the bytes of a number


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is not let in; the sentence says for what."""


class Unpickler(pickle.Unpickler):
    """Makes containers, texts and numbers, and an `Array` in place of every numpy array.

    `allowed` has what may be named, by module and name; other formats add to it.
    """

    allowed: Mapping[tuple[str, str], Callable[..., Any]]

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self.allowed:
            raise Refused(f'it asks for {f"{module}.{name}"[:100]!r}')
        allowed = self.allowed[module, name]
        # A new function, since a pickle may set attributes of what it names.
        return lambda *args: allowed(*args)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused('it refers to something outside of the file')


class Array:
    """Stands for a numpy array, which a pickle fills after it has made it.

    Attributes:
      array: of numbers; None until it is filled.
    """

    def __init__(self, *_):  # what numpy makes an empty array of does not matter
        self.array: np.ndarray | None = None

    def __setstate__(self, state):
        _, shape, kind, is_fortran, content = state
        self.array = _filled(shape, kind, 'F' if is_fortran else 'C', content)


class _Kind:
    """Stands for a numpy.dtype, of numbers only."""

    def __init__(self, code: str, *_):
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise Refused(f'it has an array of the type {str(code)[:100]!r}, which are no numbers')
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] not in _ORDERS:
            raise Refused(f'it has numbers in the order {str(state[1])[:100]!r}')
        self.dtype = self.dtype.newbyteorder(state[1])


def _filled(shape: tuple[int, ...], kind: _Kind, order: str, content: bytes | str) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(shape, tuple):
        raise Refused('it has an array without a type or shape')
    if isinstance(content, str):  # of Python 2
        content = content.encode('latin1')
    if not isinstance(content, (bytes, bytearray)):
        raise Refused('it has an array of something else than bytes')
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _from_buffer(content: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> Array:
    """In place of numpy's function of pickles of protocol 5."""
    found = Array()
    found.array = _filled(shape, kind, order, content)
    return found


def _scalar(kind: _Kind, content: bytes | str) -> int | float | bool:
    return _filled((), kind, 'C', content).item()


def encode(text: str, encoding: str) -> bytes:
    """Encodes text in place of _codecs.encode, by which pickles of protocol 2 have bytes."""
    if encoding not in ('latin1', 'latin-1'):
        raise Refused(f'it encodes text as {str(encoding)[:100]!r}')
    return text.encode('latin1')


_MULTIARRAY = {'_reconstruct': Array, 'scalar': _scalar}
Unpickler.allowed = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('_codecs', 'encode'): encode,
    ('__builtin__', 'bytes'): lambda: b'',  # how protocol 2 has no bytes at all
    ('numpy', 'ndarray'): Array,
    ('numpy', 'dtype'): _Kind,
    # Before numpy 2, and since then.
    **{(f'numpy.{core}.multiarray', name): function
       for core in ('core', '_core') for name, function in _MULTIARRAY.items()},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _from_buffer for core in ('core', '_core')},
}


@contextlib.contextmanager
def refusals(path: pathlib.Path, contents: str, other: str) -> Iterator[None]:
    """Turns whatever a pickle leads to into one sentence.

    Args:
      path: of the file.
      contents: what may be in it.
      other: what it might be instead of damaged.
    """
    try:
        yield
    except Refused as error:
        raise UserError(f'{path} is refused: {error}, and only {contents} are read, since a pickle '
                        'can run code.') from error
    except Exception as error:  # the unpickler raises whatever the damage leads to
        raise UserError(f'{path} is damaged or truncated, or is {other}: it cannot be read '
                        f'({reason(error)}).') from error


def load(path: pathlib.Path) -> Any:
    """What a pickle holds, of Python 2 or 3, with an `Array` in place of every numpy array.

    Raises:
      UserError: the file asks for anything else, is no pickle, or is cut short or damaged.
    """
    with refusals(path, 'arrays of numbers', 'no pickle'):
        return Unpickler(io.BytesIO(path.read_bytes()), encoding='latin1').load()
