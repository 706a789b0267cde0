"""Which network a set of tensors is, from their names and shapes alone."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import vgg

Tensors = Mapping[str, np.ndarray]

PREFIXES = ('module.', 'model.', '_orig_mod.')  # of wrappers around a network
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


def canonical(tensors: Tensors) -> tuple[dict[str, np.ndarray], str]:
    """The tensors under torchvision's names, and whose names they had.

    Raises:
      UserError: the names are none of the known ones.
    """
    tensors = dict(tensors)
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    if any(_HF_BLOCK.match(name) for name in tensors):
        return {_from_hf(name): array for name, array in tensors.items()}, 'Hugging Face'
    if 'features.0.weight' in tensors:
        timm = any(name.startswith('pre_logits.') for name in tensors)
        renamed = {_from_timm_vgg(name): array for name, array in tensors.items()}
        # timm's first dense layers are convolutions.
        return {name: array.reshape(len(array), -1) if name in (
                    'classifier.0.weight', 'classifier.3.weight') and array.ndim == 4 else array
                for name, array in renamed.items()}, 'timm' if timm else 'torchvision'
    if 'conv1.weight' in tensors and 'layer1.0.conv1.weight' in tensors:
        names = 'torchvision or timm'
        if 'linear.weight' in tensors or len(_stages(tensors)) == 3:
            names = 'CIFAR'
        renames = (('linear.', 'fc.'), ('.shortcut.', '.downsample.'))
        for old, new in renames:
            tensors = {name.replace(old, new): array for name, array in tensors.items()}
        return tensors, names
    raise UserError('the names of the tensors are neither those of torchvision, timm, Hugging '
                    'Face nor the CIFAR networks; the first are '
                    f'{", ".join(list(tensors)[:4])}.')


def architecture(tensors: Tensors) -> dict[str, Any]:
    """The fields of `config.model` that names and shapes decide.

    What they do not decide: where a bottleneck has its stride, and whether a network without
    projections has shortcuts of option A or none at all; option A is assumed.

    Args:
      tensors: under torchvision's names.

    Raises:
      UserError: no network of the project has such tensors.
    """
    return _vgg(tensors) if 'features.0.weight' in tensors else _resnet(tensors)


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
    stem, head = tensors['conv1.weight'], tensors.get('fc.weight')
    if stem.ndim != 4 or head is None or head.ndim != 2:
        raise UserError('the tensors are no classifier: conv1.weight must have four dimensions and '
                        'there must be a dense layer fc (or linear, or classifier.1).')
    sizes = _stages(tensors)
    family = {(4, 7): 'imagenet', (3, 3): 'cifar'}.get((len(sizes), stem.shape[-1]))
    if family is None:
        raise UserError(f'a network of {len(sizes)} stages behind a {stem.shape[-1]}x'
                        f'{stem.shape[-1]} convolution is none of the paper: those have four '
                        'behind a 7x7, or three behind a 3x3.')
    bottleneck = 'layer1.0.conv3.weight' in tensors
    depth = sum(sizes) * (3 if bottleneck else 2) + 2
    try:
        block, expected = models.architecture(family, depth)
        fits = expected == sizes and (block.expansion == 4) == bottleneck
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f'{"bottleneck" if bottleneck else "basic"} blocks in stages of '
                        f'{", ".join(map(str, sizes))} are no network of the paper.')
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


def _stages(tensors: Tensors) -> tuple[int, ...]:
    """Blocks in each stage, in order."""
    blocks = {(int(match[1]), int(match[2])) for name in tensors if (match := _BLOCK.match(name))}
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


def _from_timm_vgg(name: str) -> str:
    for old, new in _TIMM_VGG.items():
        name = name.replace(old, new) if name.startswith(old) else name
    return name
