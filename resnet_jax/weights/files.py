"""Tensors by name from the files of other projects; nothing that a file holds is ever run."""

import json
import pathlib
import struct
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

from resnet_jax.errors import UserError

PICKLES = ('.pth', '.th', '.pt', '.bin', '.ckpt')
WRAPPERS = ('state_dict', 'model', 'model_state_dict')  # keys that a training script may save under


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a .safetensors file, and its metadata.

    Raises:
      UserError: the file is cut short or damaged.
    """
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
        return _numbers(load_file(path), path), metadata
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, error) from error


def read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a file that torch.save wrote.

    A pickle can run code when it is read. Only tensors and plain containers are let in
    (`weights_only=True`); whatever else it names is refused before it is made.

    Raises:
      UserError: PyTorch is absent, or the file is damaged or holds more than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path.name} needs PyTorch: pip install -e '.[torch]'; "
                        'a .safetensors file needs nothing more.') from error
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        if 'weights_only' in str(error) or 'Unsupported' in str(error):
            raise UserError(f'{path} is refused: it is damaged or holds more than tensors, and '
                            f'reading that could run code. ({_reason(error)})') from error
        raise _damaged(path, error) from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no state dict but a {type(content).__name__}.')
    tensors = {str(name): value.detach() for name, value in content.items()
               if isinstance(value, torch.Tensor)}
    # numpy knows no bfloat16.
    return _numbers({name: (value.float() if value.is_floating_point() else value).numpy()
                     for name, value in tensors.items()}, path)


def read_json_beside(path: pathlib.Path, name: str) -> dict[str, Any]:
    """A settings file of the same folder, as Hugging Face and timm publish; {} if there is none.

    Raises:
      UserError: it is there, but is no JSON object.
    """
    beside = path.with_name(name)
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{beside}, which describes {path.name}, cannot be read: {error}.') from (
            error)
    if not isinstance(content, dict):
        raise UserError(f'{beside}, which describes {path.name}, holds no JSON object.')
    return content


def _numbers(tensors: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Without the counters of batch normalisation; what is left must be floating-point."""
    kept = {name: array for name, array in tensors.items()
            if not name.endswith('num_batches_tracked')}
    for name, array in kept.items():
        # numpy does not count ml_dtypes' bfloat16 among its own floating-point types.
        if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
            raise UserError(f'{path}: {name} has the type {array.dtype}; weights are '
                            'floating-point numbers.')
    if not kept:
        raise UserError(f'{path} holds no tensors.')
    return {name: np.asarray(array, np.float32) for name, array in kept.items()}


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f'{path} is damaged or cut short: it cannot be read ({_reason(error)}).')


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'.rstrip(': ')
