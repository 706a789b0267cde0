"""Reads named tensors from files of other projects, without executing anything in them."""

import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

from resnet_jax.errors import UserError, reason
from resnet_jax.weights import hub, torch_file, unpickle

PICKLES = ('.pth', '.th', '.pt', '.bin', '.ckpt')
SUFFIXES = ('.safetensors', *PICKLES, '.npz', '.pkl', '.caffemodel')
FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')  # of Hugging Face's and timm's folders
WRAPPERS = ('state_dict', 'model', 'model_state_dict')  # keys that a training script may save under
PKL_WRAPPERS = ('model', 'blobs')  # the same, in a .pkl of detectron2 or of Detectron
LISTED = 6  # names that an error spells out
# How the names of running variances end: PyTorch's, ours, and those of a Caffe file.
VARIANCES = ('running_var', '/var', '(running_var)')


def find(path: pathlib.Path) -> pathlib.Path:
    """The file of weights that a path means: itself, the one in a folder, or one of the hub.

    Args:
      path: a file; a name such as hf:timm/resnet50.a1_in1k, which is downloaded; or a folder such
        as Hugging Face's and timm's, with model.safetensors or pytorch_model.bin or only one file
        of weights.

    Raises:
      UserError: there is no such file, or there are several; or see `hub.download`.
    """
    if hub.is_name(path):
        return hub.download(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f'there is no file or folder {path}.')
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(child.name for child in path.iterdir() if child.suffix in SUFFIXES)
    if len(found) == 1:
        return path / found[0]
    if (path / 'checkpoints').is_dir():
        raise UserError(f'{path} does not need to be converted; pass it to the other commands.')
    raise UserError(f'{path} holds no file of weights ({", ".join(SUFFIXES)}).' if not found else
                    f'{path} holds several files of weights: name one of {", ".join(found)}.')


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a .safetensors file, and its metadata.

    Raises:
      UserError: the file is truncated or damaged.
    """
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, struct.error) as error:
        raise _damaged(path, error) from error
    return _numbers(tensors, path), metadata


def read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a file that torch.save wrote.

    Raises:
      UserError: the file is damaged, hostile, or holds more than tensors; see `torch_file.load`.
    """
    content = _unwrapped(torch_file.load(path), WRAPPERS, path, 'a state dict')
    return _numbers({name: value.array for name, value in content.items()
                     if isinstance(name, str) and isinstance(value, torch_file.Tensor)}, path)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file that numpy.savez wrote.

    Python objects, which could run code when they are read, are not let in.

    Raises:
      UserError: the file is damaged or holds more than numbers.
    """
    try:
        with zipfile.ZipFile(path):  # numpy would read other files too
            pass
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        if 'allow_pickle' in str(error):
            raise UserError(f'{path} is refused: it holds Python objects, and reading these could '
                            'run code.') from error
        raise _damaged(path, error) from error
    return _numbers(tensors, path)


def read_pkl(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .pkl of detectron2: numpy arrays, without PyTorch.

    Raises:
      UserError: the file is damaged, hostile, or holds no such arrays; see `unpickle.load`.
    """
    content = _unwrapped(unpickle.load(path), PKL_WRAPPERS, path, 'arrays by name')
    return _numbers({str(name): value.array for name, value in content.items()
                     if isinstance(value, unpickle.Array) and value.array is not None}, path)


def _unwrapped(content: Any, wrappers: Sequence[str], path: pathlib.Path,
               wanted: str) -> dict[Any, Any]:
    """The dict of tensors, which may lie in others under these keys."""
    for key in wrappers:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__} instead of {wanted}.')
    return content


def _numbers(tensors: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """float32, without the counters of batch normalisation.

    Raises:
      UserError: some are not floating-point numbers, or NaN or infinite.
    """
    kept = {name: array for name, array in tensors.items()
            if not name.endswith('num_batches_tracked')}
    for name, array in kept.items():
        # numpy does not count ml_dtypes' bfloat16 among its own floating-point types.
        if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
            raise UserError(f'{path}: {name} has the type {array.dtype}; weights are '
                            'floating-point numbers.')
    if not kept:
        raise UserError(f'{path} holds no tensors.')
    with np.errstate(over='ignore'):  # float64 beyond float32 becomes infinite
        kept = {name: np.asarray(array, np.float32) for name, array in kept.items()}
    check_finite(kept, path)
    return kept


def check_finite(arrays: Mapping[str, np.ndarray], what: pathlib.Path | str) -> None:
    """Raises UserError, which says what holds them, with the names of arrays with NaN or infinity.

    A variance below 0, of which the square root is NaN, is refused as well.
    """
    _refuse(arrays, what, 'NaN or infinity', lambda name, array: not np.isfinite(array).all())
    _refuse(arrays, what, 'a variance below 0',
            lambda name, array: name.endswith(VARIANCES) and (array < 0).any())


def _refuse(arrays: Mapping[str, np.ndarray], what: pathlib.Path | str, contents: str,
            is_wrong: Callable[[str, np.ndarray], bool]) -> None:
    names = [name for name, array in arrays.items() if is_wrong(name, array)]
    if names:
        more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
        raise UserError(f'{what} contains {contents} in {", ".join(names[:LISTED])}{more}: it is '
                        'damaged, or the training that wrote it had diverged.')


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f'{path} is damaged or truncated: it cannot be read ({reason(error)}).')
