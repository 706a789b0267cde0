"""Recognises the network that a set of tensors belongs to, by their names and shapes."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import vgg
from resnet_jax.weights.differences import differences

Tensors = Mapping[str, np.ndarray]

PREFIXES = ('module.', 'model.', '_orig_mod.', 'timm_model.')  # of wrappers around a network
_HF = (
    (r'^(?:resnet\.)?embedder\.embedder\.convolution\.', 'conv1.'),
    (r'^(?:resnet\.)?embedder\.embedder\.normalization\.', 'bn1.'),
    (r'^classifier\.1\.', 'fc.'),
)
_HF_BLOCK = re.compile(r'^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)$')
_HF_LAYER = re.compile(r'^layer\.(\d)\.(convolution|normalization)\.(.*)$')
_TIMM_VGG = {'pre_logits.fc1.': 'classifier.0.', 'pre_logits.fc2.': 'classifier.3.',
             'head.fc.': 'classifier.6.'}
_BLOCK = re.compile(r'^layer(\d+)\.(\d+)\.')


class Named(NamedTuple):
    """Tensors under torchvision's names.

    Attributes:
      tensors: by name.
      origin: whose names they had.
      original: the names that they had, by torchvision's.
    """

    tensors: dict[str, np.ndarray]
    origin: str
    original: dict[str, str]


def canonical(tensors: Tensors) -> Named:
    """The tensors under torchvision's names.

    Raises:
      UserError: the names are none of the known ones, or two mean the same tensor.
    """
    names, prefix = list(tensors), ''
    while more := next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in names)), None):
        prefix += more
    bare = {name: name.removeprefix(prefix) for name in names}
    rename, origin = _naming(bare.values())
    original = {}
    for name in names:
        new = rename(bare[name])
        if new in original:
            raise UserError(f'{original[new]} and {name} are names of the same tensor.')
        original[new] = name
    named = {new: tensors[old] for new, old in original.items()}
    # timm's VGG has convolutions for its first dense layers.
    for name in ('classifier.0.weight', 'classifier.3.weight'):
        if name in named and named[name].ndim == 4:
            named[name] = named[name].reshape(len(named[name]), -1)
    return Named(named, origin, original)


def _naming(names: Collection[str]) -> tuple[Callable[[str], str], str]:
    """How names become torchvision's, and whose they are."""
    if any(_HF_BLOCK.match(name) for name in names):
        return _from_hf, 'Hugging Face'
    if 'features.0.weight' in names:
        timm = any(name.startswith('pre_logits.') for name in names)
        return _from_timm_vgg, 'timm' if timm else 'torchvision'
    if 'layer1.0.conv1.weight' in names and any(name.startswith('conv1.') for name in names):
        cifar = 'linear.weight' in names or len(_stages(names)) == 3
        return _from_cifar, 'CIFAR' if cifar else 'torchvision or timm'
    raise UserError('the names of the tensors are not those of torchvision, timm, Hugging Face or '
                    f'the CIFAR networks; the first are {", ".join(list(names)[:4])}.')


def architecture(tensors: Tensors, original: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields of `config.model` that names and shapes decide.

    What they do not decide: where a bottleneck has its stride, and whether a network without
    projections has shortcuts of option A or none at all; option A is assumed.

    Args:
      tensors: under torchvision's names.
      original: the names that they have in their file, for the sentence; None: the same.

    Raises:
      UserError: no network of the project has such tensors; the sentence says what is different.
    """
    if 'features.0.weight' in tensors:
        return _vgg(tensors)
    if different := differences(tensors, original or {name: name for name in tensors}):
        raise UserError(f'this is not a network of the paper: it has {"; ".join(different)}.')
    return _resnet(tensors)


def fold_biases(tensors: Tensors) -> dict[str, np.ndarray]:
    """Moves the biases of convolutions into the running means of the normalisations behind them.

    Such a bias has no effect on training, and in evaluation (x + b) - mean = x - (mean - b).
    Caffe's ResNet-50 and torchvision's VGG with batch normalisation have some.
    """
    folded = dict(tensors)
    for name in tensors:
        if not name.endswith('.running_mean'):
            continue
        norm = name.removesuffix('.running_mean')
        index = re.fullmatch(r'features\.(\d+)', norm)
        conv = f'features.{int(index[1]) - 1}' if index else norm.replace('bn', 'conv')
        bias = folded.pop(f'{conv}.bias', None) if conv != norm else None
        if bias is not None and bias.shape == tensors[name].shape:
            folded[name] = tensors[name] - bias
    return folded


def _resnet(tensors: Tensors) -> dict[str, Any]:
    stem, head = tensors.get('conv1.weight'), tensors.get('fc.weight')
    if stem is None or stem.ndim != 4 or head is None or head.ndim != 2:
        raise UserError('the tensors do not make a classifier: there must be a first convolution, '
                        'conv1, and a dense layer fc (or linear, or classifier.1).')
    sizes = _stages(tensors)
    family = {(4, 7): 'imagenet', (3, 3): 'cifar'}.get((len(sizes), stem.shape[-1]))
    if family is None:
        raise UserError(f'a network of {len(sizes)} stages behind a {stem.shape[-1]}x'
                        f'{stem.shape[-1]} convolution is not in the paper: its networks have four '
                        'behind a 7x7, or three behind a 3x3.')
    bottleneck = 'layer1.0.conv3.weight' in tensors
    depth = sum(sizes) * (3 if bottleneck else 2) + 2
    try:
        block, expected = models.architecture(family, depth)
        fits = expected == sizes and (block.expansion == 4) == bottleneck
    except models.ConfigError:
        fits = False
    if not fits:
        raise UserError(f'{"bottleneck" if bottleneck else "basic"} blocks in stages of '
                        f'{", ".join(map(str, sizes))} do not make a network of the paper.')
    projected = {match.group() for name in tensors
                 if '.downsample.' in name and (match := _BLOCK.match(name))}
    shortcut = 'A' if not projected else 'C' if len(projected) == sum(sizes) else 'B'
    return {'family': family, 'depth': depth, 'num_classes': len(head), 'width': len(stem),
            'shortcut': shortcut}


def _vgg(tensors: Tensors) -> dict[str, Any]:
    convs = sum(name.startswith('features.') and array.ndim == 4
                for name, array in tensors.items())
    depths = {sum(sizes): depth for depth, sizes in vgg.STAGE_SIZES.items()}
    head = tensors.get('classifier.6.weight')
    if convs not in depths or head is None or head.ndim != 2:
        raise UserError(f'a VGG network of {convs} convolutions with'
                        f'{"" if head is not None else "out"} a last dense layer is neither '
                        'VGG-16 nor VGG-19.')
    return {'family': 'vgg', 'depth': depths[convs], 'num_classes': len(head),
            'width': len(tensors['features.0.weight']),
            'batch_norm': any(name.endswith('running_mean') for name in tensors)}


def _stages(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks in each stage, in order."""
    blocks = {(int(match[1]), int(match[2])) for name in names if (match := _BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(stage == s for s, _ in blocks) for stage in stages)


def _from_hf(name: str) -> str:
    for pattern, new in _HF:
        name = re.sub(pattern, new, name)
    match = _HF_BLOCK.match(name)
    if match is None:
        return name
    stage, block, inner = int(match[1]) + 1, match[2], match[3]
    inner = inner.replace('shortcut.convolution', 'downsample.0').replace(
        'shortcut.normalization', 'downsample.1')
    layer = _HF_LAYER.match(inner)
    if layer:
        kind = 'conv' if layer[2] == 'convolution' else 'bn'
        inner = f'{kind}{int(layer[1]) + 1}.{layer[3]}'
    return f'layer{stage}.{block}.{inner}'


def _from_cifar(name: str) -> str:
    """Torchvision's own names stay as they are."""
    return name.replace('linear.', 'fc.').replace('.shortcut.', '.downsample.')


def _from_timm_vgg(name: str) -> str:
    for old, new in _TIMM_VGG.items():
        name = name.replace(old, new) if name.startswith(old) else name
    return name
