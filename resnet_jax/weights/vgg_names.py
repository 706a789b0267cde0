"""VGG in torchvision and timm: what its tensors are called, and how it is recognised."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import vgg
from resnet_jax.weights.foreign import Foreign, Tensors, register

_DENSE = {'dense1': 'classifier.0', 'dense2': 'classifier.3', 'head': 'classifier.6'}
_TIMM = {'pre_logits.fc1.': 'classifier.0.', 'pre_logits.fc2.': 'classifier.3.',
         'head.fc.': 'classifier.6.'}
_FIRST = 'features.0.weight'


def _naming(names):
    if _FIRST not in names:
        return None
    timm = any(name.startswith('pre_logits.') for name in names)
    return _from_timm, 'timm' if timm else 'torchvision'


def _from_timm(name: str) -> str:
    for old, new in _TIMM.items():
        name = name.replace(old, new) if name.startswith(old) else name
    return name


def _fields(tensors: Tensors, original: Mapping[str, str]) -> dict[str, Any]:
    convs = sum(name.startswith('features.') and array.ndim == 4
                for name, array in tensors.items())
    depths = {sum(sizes): depth for depth, sizes in vgg.STAGE_SIZES.items()}
    head = tensors.get('classifier.6.weight')
    if convs not in depths or head is None or head.ndim != 2:
        raise UserError(f'a VGG network of {convs} convolutions with'
                        f'{"" if head is not None else "out"} a last dense layer is neither '
                        'VGG-16 nor VGG-19.')
    return {'family': 'vgg', 'depth': depths[convs], 'num_classes': len(head),
            'width': len(tensors[_FIRST]),
            'batch_norm': any(name.endswith('running_mean') for name in tensors)}


def _tensors_of(module: tuple[str, ...], blocks: int, config: Mapping[str, Any]) -> tuple[str]:
    """torchvision numbers convolutions, normalisations, ReLUs and poolings in one sequence."""
    (name,) = module
    if name in _DENSE:
        return (_DENSE[name],)
    stage, layer = name.removeprefix('stage').split('_')
    kind, position = layer[:-1], int(layer[-1])
    per_conv = 3 if config['batch_norm'] else 2
    before = vgg.STAGE_SIZES[config['depth']][:int(stage) - 1]
    index = sum(before) * per_conv + len(before) + (position - 1) * per_conv
    return (f'features.{index + (kind == "norm")}',)


def _idle_biases(tensors: Tensors) -> dict[str, np.ndarray]:
    """Convolutions in front of a normalisation have a bias in torchvision: it is zero."""
    norms = [name for name in tensors if name.endswith('.running_mean')]
    return {f'features.{int(name.split(".")[1]) - 1}.bias': np.zeros_like(tensors[name])
            for name in norms}


register('vgg', Foreign(
    naming=_naming, recognises=lambda tensors: _FIRST in tensors, fields=_fields,
    tensors_of=_tensors_of, image_size=(224, 256), first=(_FIRST,), flattened=('dense1',),
    timm=r'vgg(?:16|19)(?:_bn)?', idle_biases=_idle_biases))
