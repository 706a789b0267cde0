"""Pre-activation networks in timm: what their tensors are called, and how they are recognised."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.weights import resnet_names
from resnet_jax.weights.foreign import Foreign, Tensors, register

_FIRST = 'stem.conv.weight'
_MODULES = {'stem/conv': 'stem.conv', 'norm': 'norm', 'head': 'head.fc'}
_BLOCK = re.compile(r'^stages\.(\d+)\.blocks\.(\d+)\.(.*)$')
_TO_V1 = {_FIRST: 'conv1.weight', 'head.fc.weight': 'fc.weight'}


def _naming(names):
    return ((lambda name: name), 'timm') if _recognises(names) else None


def _recognises(names: Collection[str]) -> bool:
    return _FIRST in names and any(
        match and match[3] == 'norm1.weight' for match in map(_BLOCK.match, names))


def _v1_name(name: str) -> str:
    """The name of the tensor of this place in torchvision's networks, as far as there is one."""
    if match := _BLOCK.match(name):
        inner = match[3].replace('norm', 'bn').replace('downsample.conv', 'downsample.0')
        return f'layer{int(match[1]) + 1}.{match[2]}.{inner}'
    return _TO_V1.get(name, name)


def _fields(tensors: Tensors, original: Mapping[str, str]) -> dict[str, Any]:
    head = tensors.get('head.fc.weight')
    if head is None or head.ndim != 4:
        raise UserError('the tensors do not make a classifier: there must be a 1x1 convolution '
                        'head.fc.')
    renamed = {_v1_name(name): array for name, array in tensors.items()}
    renamed['fc.weight'] = head[..., 0, 0]
    fields = resnet_names.fields(
        renamed, {_v1_name(name): original.get(name, name) for name in tensors})
    return {**fields, 'family': f'{fields["family"]}_v2'}


def _tensors_of(module: tuple[str, ...], blocks: int,
                config: Mapping[str, Any]) -> tuple[str, ...]:
    if name := _MODULES.get('/'.join(module)):
        return (name,)
    stage, position, *inner = module
    prefix = f'stages.{int(stage.removeprefix("stage")) - 1}.blocks'
    return tuple(f'{prefix}.{number}.{".".join(inner).replace("shortcut", "downsample")}'
                 for number in resnet_names.numbers(position, blocks))


_imagenet = Foreign(
    naming=_naming, recognises=_recognises, fields=_fields,
    tensors_of=_tensors_of, image_size=(224, 256), first=(_FIRST,), pointwise=('head',),
    timm=r'resnetv2_(?:50|101|152)', assumed=resnet_names.assumed_stride)
register('imagenet_v2', _imagenet)
register('cifar_v2', dataclasses.replace(
    _imagenet, timm='', image_size=(32, 32), convention=False))
