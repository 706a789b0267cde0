"""Weights of other projects: recognised, renamed, and stored like our own; and back out again."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from resnet_jax import config as config_lib
from resnet_jax.errors import UserError
from resnet_jax.weights import caffe, files, names, recognise

# What torchvision's, timm's and Hugging Face's ResNets expect: mean and standard deviation of the
# ImageNet training images in units of the full range.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS_KEY = 'resnet_jax'  # of our own settings in a safetensors file


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network and its weights.

    Attributes:
      config: see `resnet_jax.config`; the fields of `model` and `data.image_size`, `eval_resize`
        and `channels` are set.
      variables: {'params': …, 'batch_stats': …}, numpy float32.
      normalization: 'mean' and 'std', float32, in units of the full range; see `resnet_jax.data`.
      origin: whose names the tensors had.
    """

    config: Any
    variables: Mapping[str, Any]
    normalization: Mapping[str, np.ndarray]
    origin: str

    def describe(self) -> str:
        """Two lines for the terminal: the network, and what its input is."""
        model = self.config.model
        traits = [f'{model.num_classes} classes']
        if model.family == 'vgg':
            traits.append(f'batch normalisation {"on" if model.batch_norm else "off"}')
        else:
            traits.append('no shortcuts' if model.plain else f'shortcut {model.shortcut}')
            if model.family == 'imagenet' and model.depth >= 50:
                traits.append(f'stride {model.stride_in}')
        size = sum(array.size for array in _leaves(self.variables['params']))
        mean, std = (' '.join(f'{x:.4g}' for x in np.atleast_1d(self.normalization[part]).reshape(
            -1, self.config.data.channels).mean(0)) for part in ('mean', 'std'))
        colours = 'RGB' if self.config.data.channels == 3 else 'grey'
        return (f'{model.family} network of depth {model.depth}, {", ".join(traits)}: '
                f'{size:,} parameters, from the names of {self.origin}\n'
                f'input: {colours} in [0, 1], less {mean}, divided by {std}')


def read(path: pathlib.Path, stride_in: str | None = None, mean: tuple[float, ...] | None = None,
         std: tuple[float, ...] | None = None) -> Weights:
    """Reads the weights of another project, or those that `write_torchvision` wrote.

    Args:
      path: .safetensors, .pth or another suffix of PyTorch's, or .caffemodel. A config.json and
        preprocessor_config.json of Hugging Face's or timm's in the same folder are heeded.
      stride_in: where bottlenecks have their stride, 'v1' or 'v1.5'; None: as the file or those
        beside it say, otherwise 'v1' for Caffe and 'v1.5' for the rest.
      mean, std: of the input in units of the full range, one number a channel; None: as above.

    Raises:
      UserError: the file is not there, damaged or hostile, or makes no network of the project.
    """
    if not path.is_file():
        raise UserError(f'there is no file {path}.')
    settings, beside = {}, {}
    if path.suffix == '.caffemodel':
        tensors, stride = caffe.read(path)
        origin = 'the authors'
        settings = {'model': {'stride_in': stride, 'pool_pad': 'end'}}
        default_mean, default_std = np.array(caffe.MEAN) / 255, np.full(3, 1 / 255)
    else:
        if path.suffix == '.safetensors':
            tensors, metadata = files.read_safetensors(path)
            settings = _own_settings(metadata, path)
        elif path.suffix in files.PICKLES:
            tensors = files.read_pickle(path)
        else:
            raise UserError(f'{path} must end in .safetensors, .caffemodel or one of '
                            f'{", ".join(files.PICKLES)}.')
        tensors, origin = recognise.canonical(tensors)
        beside = _beside(path, origin)
        default_mean, default_std = np.array(MEAN), np.array(STD)
    fields = recognise.architecture(tensors)
    first = 'features.0.weight' if fields['family'] == 'vgg' else 'conv1.weight'
    channels = tensors[first].shape[1]

    config = config_lib.default()
    given = {'stride_in': stride_in} if stride_in else {}
    for found in (fields, {'stride_in': 'v1.5'}, beside.get('model', {}),
                  settings.get('model', {}), given):
        try:
            config.model.update({name: found[name] for name in found if name in config.model})
        except (TypeError, ValueError) as error:
            raise UserError(f'{path}: what it says of the network is damaged: {error}') from error
    config.data.channels = channels
    config.data.image_size, config.data.eval_resize = settings.get(
        'image_size', (32, 32) if fields['family'] == 'cifar' else (224, 256))
    try:
        variables = names.from_torch(recognise.fold_biases(tensors), config.model, channels)
    except ValueError as error:
        raise UserError(f'{path}: {error}') from error
    normalization = {}
    for part, value, default in (('mean', mean, default_mean), ('std', std, default_std)):
        value = value or settings.get(part, beside.get(part))
        normalization[part] = _per_channel(part, default if value is None else value, channels)
    return Weights(config, variables, normalization, origin)


def write_torchvision(path: pathlib.Path, weights: Weights) -> None:
    """Writes a .safetensors file under torchvision's names, whole or not at all.

    What names and shapes do not tell (the stride, the normalisation, the paper's options) goes into
    the file's metadata, so that `read` gives back the same network.
    """
    settings = {
        'model': weights.config.model.to_dict(),
        'image_size': (weights.config.data.image_size, weights.config.data.eval_resize),
        **{part: np.asarray(value).tolist() for part, value in weights.normalization.items()}}
    tensors = names.to_torch(weights.variables, weights.config.model)
    write_bytes_whole(path, save(tensors, {'format': 'pt', SETTINGS_KEY: json.dumps(settings)}))


def write_bytes_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file such that it is there whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}.') from error


def _own_settings(metadata: Mapping[str, str], path: pathlib.Path) -> dict[str, Any]:
    if SETTINGS_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[SETTINGS_KEY])
        settings['model'].keys(), settings['mean'], settings['std']
        size, resize = settings['image_size']
        settings['image_size'] = (int(size), resize if resize is None else int(resize))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: the settings in its metadata are damaged.') from error
    return settings


def _beside(path: pathlib.Path, origin: str) -> dict[str, Any]:
    """What Hugging Face's and timm's files in the same folder say of the network."""
    config = files.read_json_beside(path, 'config.json')
    if origin == 'Hugging Face':
        if config.get('downsample_in_first_stage'):
            raise UserError(f'{path}: downsample_in_first_stage is no network of the paper.')
        if config.get('hidden_act', 'relu') != 'relu':
            raise UserError(f'{path}: the activation {config["hidden_act"]} is not supported.')
        processor = files.read_json_beside(path, 'preprocessor_config.json')
        found = {'mean': processor.get('image_mean'), 'std': processor.get('image_std')}
        if config.get('downsample_in_bottleneck'):
            found['model'] = {'stride_in': 'v1'}
    else:
        pretrained = config.get('pretrained_cfg') or {}
        found = {'mean': pretrained.get('mean'), 'std': pretrained.get('std')}
    return {name: value for name, value in found.items() if value is not None}


def _per_channel(name: str, value: Any, channels: int) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f'the {name} of the input is {value!r}, which are no numbers.') from error
    if array.shape == (3,) and channels == 1:
        array = array.mean(keepdims=True)
    if array.shape[-1:] != (channels,) or not np.isfinite(array).all():
        raise UserError(f'the {name} of the input must be {channels} numbers, got {value!r}.')
    if name == 'std' and (array <= 0).any():
        raise UserError(f'the std of the input must be positive, got {value!r}.')
    return array


def _leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, Mapping):
        return [leaf for child in tree.values() for leaf in _leaves(child)]
    return [tree]
