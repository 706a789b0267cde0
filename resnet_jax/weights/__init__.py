"""Checkpoints, and conversion of weights from and to other projects."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.config.stored import leaves
from resnet_jax.data import Normalization
from resnet_jax.data.sizes import pair
from resnet_jax.errors import UserError
from resnet_jax.output import write_whole
from resnet_jax.weights import (
    beside,
    caffe,
    caffe2_names,
    files,
    foreign,
    names,
    published,
    recognise,
)

# What torchvision's, timm's and Hugging Face's ResNets expect: mean and standard deviation of the
# ImageNet training images in units of the full range.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS_KEY = 'resnet_jax'  # of our own settings in a safetensors file
# How images are cropped in evaluation, besides `data.image_size` and `eval_resize`.
EVALUATION = ('data.eval_crop_share', 'data.eval_size', 'data.eval_filter')


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network and its weights.

    Attributes:
      config: see `resnet_jax.config`; the fields of `model` and `data.image_size`, `eval_resize`
        and `channels` are set.
      variables: {'params': …, 'batch_stats': …}, numpy float32.
      normalization: 'mean' and 'std', float32, in units of the full range; see `resnet_jax.data`.
      origin: whose names the tensors had.
      assumed: what neither the tensors nor the files beside them say, as phrases.
      classes: the names of the classes, if their number stands for certain ones.
      title: what follows the name of the network in a description.
    """

    config: Any
    variables: Mapping[str, Any]
    normalization: Normalization
    origin: str
    assumed: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    title: str = ''

    def describe(self) -> str:
        """Lines for the terminal: the network, what its input is, and what was assumed."""
        model = self.config.model
        family = models.family_of(model)
        traits = [f'{model.num_classes} classes', *family.traits(model)]
        size = sum(array.size for array in _leaves(self.variables['params']))
        mean, std = (' '.join(f'{x:.4g}' for x in np.atleast_1d(self.normalization[part]).reshape(
            -1, self.config.data.channels).mean(0)) for part in ('mean', 'std'))
        colours = 'RGB' if self.config.data.channels == 3 else 'grey'
        title = family.title(model) + self.title
        lines = [f'{title}, {", ".join(traits)}: {size:,} parameters, from the names of '
                 f'{self.origin}',
                 f'input: {colours} in [0, 1], less {mean}, divided by {std}']
        if self.assumed:
            lines.append('assumed, since the tensors do not show it and no config.json names the '
                         f'architecture: {"; ".join(self.assumed)}')
        return '\n'.join(lines)


def read(path: pathlib.Path, stride_in: str | None = None, mean: tuple[float, ...] | None = None,
         std: tuple[float, ...] | None = None, bn_epsilon: float | None = None) -> Weights:
    """Reads the weights of another project, or those that `to_torchvision` wrote.

    Args:
      path: .safetensors, .pth or another suffix of PyTorch's, .npz, .caffemodel or detectron2's
        .pkl; or a folder of Hugging Face's or timm's; or the name of one at the hub, see
        `resnet_jax.weights.hub`. A config.json and preprocessor_config.json of theirs in the same
        folder are read too.
      stride_in: where bottlenecks have their stride, 'v1' or 'v1.5'; None: as the file or those
        beside it say, otherwise 'v1' for Caffe and detectron2, and 'v1.5' for the rest.
      mean, std: of the input in units of the full range, one number per channel; None: as the file
        or those beside it say, otherwise ImageNet's, which CIFAR networks do not get.
      bn_epsilon: of batch normalisation; None: as the file says, otherwise 0 for torchvision's
        detectors and 1e-5 for the rest.

    Raises:
      UserError: the file is missing, damaged or hostile, holds NaN, or does not make a network of
        the project; or a CIFAR network comes without its mean and std.
    """
    path = files.find(path)
    told = beside.Beside()
    settings = {}
    if path.suffix == '.caffemodel':
        named, stride = caffe.read(path)
        settings = caffe.settings(stride)
    else:
        tensors, metadata = _tensors(path)
        of_caffe2 = caffe2_names.matches(tensors)
        settings = caffe.settings('v1') if of_caffe2 else _own_settings(metadata, path)
        if not settings:
            told = beside.read(path)
        with _naming(path, told.architecture):
            named = (caffe2_names.named if of_caffe2 else recognise.canonical)(tensors)
    with _naming(path, told.architecture):
        known, fields = recognise.architecture(named.tensors, named.original)
    is_silent = not (settings or told.architecture)
    network = published.known(fields) if is_silent else None
    tensors = named.tensors
    if network:
        tensors, settings = published.rgb(tensors), network.settings()
    elif not settings:
        with _naming(path, told.architecture):
            tensors, settings = known.unpacked(tensors)
    if told.problem:
        raise UserError(f'{path.with_name("config.json")} says that the architecture is '
                        f'{told.architecture}, which {told.problem}; move config.json away if it '
                        f'does not belong to {path.name}.')
    given = {'stride_in': stride_in, 'bn_epsilon': bn_epsilon}
    config = _config(path, tensors, known, fields, told, settings, {
        name: value for name, value in given.items() if value is not None})
    with _naming(path, told.architecture):
        variables = names.from_torch(recognise.fold_biases(tensors), config.model,
                                     config.data.channels, named.original, known)
    normalization = _normalization(
        path, config, known.convention, mean or settings.get('mean', told.mean),
        std or settings.get('std', told.std))
    assumed = ()
    if is_silent:
        assumed = ((network.assumed(),) if network else
                   known.assumed(config.model, bool(stride_in)))
    count = config.model.num_classes
    if told.classes is not None and len(told.classes) != count:
        raise UserError(f'{path.with_name("config.json")} has names for {len(told.classes)} '
                        f'classes, but the network of {path.name} has {count}; correct it, or move '
                        'it away.')
    return Weights(config, variables, normalization, named.origin, assumed,
                   told.classes or known.classes(count), known.title)


def _tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file, and what else it says."""
    if path.suffix == '.safetensors':
        return files.read_safetensors(path)
    if path.suffix in files.PICKLES:
        return files.read_pickle(path), {}
    if path.suffix == '.npz':
        return files.read_npz(path), {}
    if path.suffix == '.pkl':
        return files.read_pkl(path), {}
    raise UserError(f'{path} must end in {", ".join(files.SUFFIXES[:-1])} or {files.SUFFIXES[-1]}.')


@contextlib.contextmanager
def _naming(path: pathlib.Path, architecture: str | None) -> Iterator[None]:
    """Puts the file, and the architecture that is named beside it, in front of what is wrong."""
    try:
        yield
    except (UserError, models.ConfigError) as error:
        named = f' ({architecture})' if architecture else ''
        raise UserError(f'{path}{named}: {error}') from error


def _config(path: pathlib.Path, tensors: Mapping[str, np.ndarray], known: foreign.Foreign,
            fields: Mapping[str, Any], told: beside.Beside, settings: Mapping[str, Any],
            given: Mapping[str, Any]):
    """The config of a network: what the tensors decide, what files say of it, what is given."""
    config = config_lib.default()
    for found in (fields, {'stride_in': 'v1.5'}, told.model, settings.get('model', {}), given):
        try:
            config.model.update({name: found[name] for name in found if name in config.model})
        except (TypeError, ValueError) as error:
            raise UserError(f'{path}: its network description is damaged: {error}') from error
    try:
        config.update_from_flattened_dict({**known.config, **settings.get('config', {})})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f'{path}: its description is damaged: {error}') from error
    config.data.channels = next(
        tensors[name].shape[1] for name in known.first if name in tensors)
    if config.data.channels not in (1, 3):
        raise UserError(f'{path}: the network takes images of {config.data.channels} channels, but '
                        'only grey images (1) and colour images (3) can be read.')
    config.data.image_size, config.data.eval_resize = settings.get(
        'image_size', known.image_size)
    config.update_from_flattened_dict(told.data)
    return config


def _normalization(path: pathlib.Path, config, convention: bool, mean: Any,
                   std: Any) -> dict[str, np.ndarray]:
    """What is taken from the input; ImageNet's where nothing says otherwise.

    Raises:
      UserError: they are not numbers, or it is a CIFAR network, for which there is no convention.
    """
    if not convention and (mean is None or std is None):
        raise UserError(
            f'{path} does not say how its input is normalised; pass --mean and --std. Some '
            'CIFAR-10 networks use the mean and std of ImageNet (--mean=0.485,0.456,0.406 '
            '--std=0.229,0.224,0.225), others those of CIFAR-10 (--mean=0.4914,0.4822,0.4465 '
            '--std=0.2470,0.2435,0.2616); look them up in the code that trained the network.')
    return {part: _per_channel(part, default if value is None else value, config.data.channels)
            for part, value, default in (('mean', mean, MEAN), ('std', std, STD))}


class HasWeights(Protocol):
    """What a network is written from: `Weights`, or what `resnet_jax.load` returns."""

    @property
    def config(self) -> Any: ...

    @property
    def variables(self) -> Mapping[str, Any]: ...

    @property
    def normalization(self) -> Normalization: ...


def to_torchvision(weights: HasWeights) -> bytes:
    """The contents of a .safetensors file under torchvision's names.

    What names and shapes do not tell (the stride, the normalisation, the paper's options) goes into
    the file's metadata, so that `read` gives back the same network.
    """
    stored = leaves(weights.config)
    settings = {
        'model': weights.config.model.to_dict(),
        'config': {name: stored[name] for name in (
            *foreign.of(weights.config.model).config, *EVALUATION) if stored[name] is not None},
        'image_size': (weights.config.data.image_size, weights.config.data.eval_resize),
        **{part: np.asarray(value).tolist() for part, value in weights.normalization.items()}}
    tensors = names.to_torch(weights.variables, weights.config.model)
    return save(tensors, {'format': 'pt', SETTINGS_KEY: json.dumps(settings)})


def write_bytes_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file such that it is there whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}.') from error


def _own_settings(metadata: Mapping[str, str], path: pathlib.Path) -> dict[str, Any]:
    if SETTINGS_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[SETTINGS_KEY])
        settings['model'].keys(), settings['mean'], settings['std']
        size, resize = settings['image_size']
        pair(size)
        settings['image_size'] = (size, resize if resize is None else int(resize))
        dict(settings.setdefault('config', {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: the settings in its metadata are damaged.') from error
    return settings


def _per_channel(name: str, value: Any, channels: int) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f'the {name} of the input must be numbers, got {value!r}.') from error
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
