"""Residual networks in torchvision, timm, Hugging Face and CIFAR projects."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import ConfigError, resnet
from resnet_jax.weights.differences import differences
from resnet_jax.weights.foreign import Foreign, Tensors, register

_MODULES = {'stem/conv': 'conv1', 'stem/norm': 'bn1', 'head': 'fc',
            'shortcut/conv': 'downsample.0', 'shortcut/norm': 'downsample.1'}
# With three convolutions in front; and behind the pooling of shortcuts of option D.
_DEEP_STEM = {'stem/conv': 'conv1.0', 'stem/norm': 'conv1.1', 'stem/conv2': 'conv1.3',
              'stem/norm2': 'conv1.4', 'stem/conv3': 'conv1.6', 'stem/norm3': 'bn1'}
_POOLED = {'shortcut/conv': 'downsample.1', 'shortcut/norm': 'downsample.2'}
FIRST = ('conv1.weight', 'conv1.0.weight')  # see `Foreign.first`
_HF = (
    (r'^(?:resnet\.)?embedder\.embedder\.convolution\.', 'conv1.'),
    (r'^(?:resnet\.)?embedder\.embedder\.normalization\.', 'bn1.'),
    (r'^classifier\.1\.', 'fc.'),
)
_HF_BLOCK = re.compile(r'^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)$')
_HF_LAYER = re.compile(r'^layer\.(\d)\.(convolution|normalization)\.(.*)$')
_BLOCK = re.compile(r'^layer(\d+)\.(\d+)\.')


def _naming(names):
    if any(_HF_BLOCK.match(name) for name in names):
        return _from_hf, 'Hugging Face'
    if 'layer1.0.conv1.weight' in names and any(name.startswith('conv1.') for name in names):
        cifar = 'linear.weight' in names or len(_stages(names)) == 3
        return _from_cifar, 'CIFAR' if cifar else 'torchvision or timm'
    return None


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
    """torchvision's own names stay as they are."""
    return name.replace('linear.', 'fc.').replace('.shortcut.', '.downsample.')


def fields(tensors: Tensors, original: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `config.model` that names and shapes decide; see `Foreign.fields`.

    Neither where a bottleneck has its stride nor missing shortcuts show in names or shapes.

    A network without projections is taken to have shortcuts of option A. One whose running
    variances are all 1, to the last bit, has its variances and epsilon folded into the scales.
    """
    if different := differences(tensors, original):
        raise UserError(f'this is not a network of the paper: it has {"; ".join(different)}.')
    deep = 'conv1.0.weight' in tensors
    stem, head = tensors.get('conv1.6.weight' if deep else 'conv1.weight'), tensors.get('fc.weight')
    if stem is None or stem.ndim != 4 or head is None or head.ndim != 2:
        raise UserError('the tensors do not make a classifier: there must be a first convolution, '
                        'conv1, and a dense layer fc (or linear, or classifier.1).')
    sizes = _stages(tensors)
    family = {(4, 7, False): 'imagenet', (4, 3, True): 'imagenet', (3, 3, False): 'cifar'}.get(
        (len(sizes), stem.shape[-1], deep))
    if family is None:
        raise UserError(f'a network of {len(sizes)} stages behind a {stem.shape[-1]}x'
                        f'{stem.shape[-1]} convolution is not in the paper: its networks have four '
                        'behind a 7x7, or three behind a 3x3.')
    bottleneck = 'layer1.0.conv3.weight' in tensors
    depth = sum(sizes) * (3 if bottleneck else 2) + 2
    try:
        block, expected = resnet.architecture(family, depth, bottleneck)
        fits = expected == sizes and (block.expansion == 4) == bottleneck
    except ConfigError:
        fits = False
    if not fits:
        raise UserError(f'{"bottleneck" if bottleneck else "basic"} blocks in stages of '
                        f'{", ".join(map(str, sizes))} do not make a network of the paper.')
    projected = {match.group() for name in tensors
                 if '.downsample.' in name and (match := _BLOCK.match(name))}
    shortcut = 'A' if not projected else 'C' if len(projected) == sum(sizes) else 'B'
    if any(name.endswith('.downsample.1.weight') and array.ndim == 4
           for name, array in tensors.items()):
        shortcut = 'D'
    inner = len(np.atleast_1d(tensors.get('layer1.0.conv1.weight', stem)))
    width = len(np.atleast_1d(tensors['layer1.0.conv3.weight'])) // 4 if bottleneck else inner
    fields = {'family': family, 'depth': depth, 'num_classes': len(head), 'width': width,
              'shortcut': shortcut}
    if len(stem) != width:
        fields['stem_width'] = len(stem)
    if deep:
        fields['deep_stem'] = True
    if bottleneck:
        fields |= _bottlenecks(tensors, family, inner, width)
    return fields | ({'bn_epsilon': 0.0} if _is_folded(tensors) else {})


def _bottlenecks(tensors: Tensors, family: str, inner: int, width: int) -> dict[str, Any]:
    """The fields in which bottlenecks differ from the paper's on ImageNet."""
    fields = {'bottleneck': True} if family == 'cifar' else {}
    if inner != width:
        fields['bottleneck_width'] = inner
    conv = tensors.get('layer1.0.conv2.weight')
    if conv is not None and conv.ndim == 4 and 0 < conv.shape[1] < inner:
        fields['groups'] = inner // conv.shape[1]
    return fields


def _is_folded(tensors: Tensors) -> bool:
    """Whether all running variances are 1 in a trained network; before training, means are 0."""
    return all((array == 1).all() for name, array in tensors.items()
               if name.endswith('running_var')) and any(
        array.any() for name, array in tensors.items() if name.endswith('running_mean'))


def _stages(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks in each stage, in order."""
    blocks = {(int(match[1]), int(match[2])) for name in names if (match := _BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(stage == s for s, _ in blocks) for stage in stages)


def tensors_of(module: tuple[str, ...], blocks: int, config: Mapping[str, Any]) -> tuple[str, ...]:
    """torchvision's names of the modules that one of ours is made of; see `Foreign.tensors_of`."""
    modules = _MODULES | (_DEEP_STEM if config['deep_stem'] else {}) | (
        _POOLED if config['shortcut'] == 'D' else {})
    stage, *inner = module
    if not stage.startswith('stage'):
        return (modules['/'.join(module)],)
    position, *inner = inner
    inner = '/'.join(inner)
    inner = modules.get(inner, inner.replace('norm', 'bn'))
    layer = stage.replace('stage', 'layer')
    return tuple(f'{layer}.{number}.{inner}' for number in numbers(position, blocks))


def numbers(position: str, blocks: int) -> range:
    """The numbers of the blocks of a stage, from 0, that our module 'block1' or 'blocks' holds."""
    return range(1, blocks + 1) if position == resnet.STACKED else range(1)


def assumed_stride(config: Mapping[str, Any], stride_given: bool) -> tuple[str, ...]:
    """Where bottlenecks have their stride, as a phrase for `Foreign.assumed`."""
    return () if stride_given else tuple(
        f'{trait} (see --stride_in)' for trait in resnet.strides(config))


def _imagenet_assumed(config: Mapping[str, Any], stride_given: bool) -> tuple[str, ...]:
    return (*assumed_stride(config, stride_given),
            'down-sampling without blur (resnetblur50 and resnetaa50 have the same tensors, and '
            'would be wrong)')


def _cifar_assumed(config: Mapping[str, Any], stride_given: bool) -> tuple[str, ...]:
    return ('shortcuts of option A, not a plain network',) if config['shortcut'] == 'A' else ()


# Every ResNet of timm 1.0 was compared by names and shapes, and what these do not show by its
# arguments.
_imagenet = Foreign(
    naming=_naming, recognises=lambda tensors: any(_BLOCK.match(name) for name in tensors),
    fields=fields, tensors_of=tensors_of, image_size=(224, 256), first=FIRST,
    timm=(r'(?:tv_|ssl_|swsl_)?resnet(?:18|34|50|101|152)'
          r'|gluon_resnet(?:18|34|50|101|152)_v1b'
          r'|resnet(?:18|34|50|101|152)d|resnet(?:50|101|152)[cs]|resnext50d_32x4d'
          r'|(?:tv_|ssl_|swsl_|gluon_|ig_)?resnext(?:50|101)_(?:32|64)x\d+d'
          r'|wide_resnet(?:50|101)_2'),
    assumed=_imagenet_assumed)
register('imagenet', _imagenet)
register('cifar', dataclasses.replace(
    _imagenet, timm='', image_size=(32, 32), convention=False, assumed=_cifar_assumed))
