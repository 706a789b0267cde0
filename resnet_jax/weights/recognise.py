"""Recognises the network that a set of tensors belongs to, by their names and shapes."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.errors import UserError

# Importing the names of a family registers them.
from resnet_jax.weights import (  # noqa: F401
    detectron2_names,
    foreign,
    fpn_names,
    resnet_names,
    resnet_v2_names,
    vgg_names,
)
from resnet_jax.weights.foreign import Foreign, Tensors

PREFIXES = ('module.', 'model.', '_orig_mod.', 'timm_model.')  # of wrappers around a network


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
    for family in foreign.FAMILIES.values():
        if found := family.naming(names):
            return found
    raise UserError('the names of the tensors are not those of torchvision, timm, Hugging Face, '
                    'detectron2 or the CIFAR networks; the first are '
                    f'{", ".join(list(names)[:4])}.')


def architecture(tensors: Tensors, original: Mapping[str, str] | None = None,
                 ) -> tuple[Foreign, dict[str, Any]]:
    """What is known of the family of a network, and the fields of `config.model`.

    The fields are those that names and shapes decide; see `Foreign.fields`.

    Args:
      tensors: under torchvision's names.
      original: the names that they have in their file, for the sentence; None: the same.

    Raises:
      UserError: no network of the project has such tensors; the sentence says what is different.
    """
    for family in foreign.FAMILIES.values():
        if family.recognises(tensors):
            original = original or {name: name for name in tensors}
            fields = family.fields(tensors, original)
            return family if 'detector' in fields else foreign.FAMILIES[fields['family']], fields
    raise UserError('the tensors do not make a network of the paper: they have no blocks.')


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
