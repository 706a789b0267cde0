"""The families of networks, by the names that `config.model.family` takes.

A new family is a module that calls `register`; nothing else in the project asks which one it is.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.models.errors import ConfigError

ModelConfig = Mapping[str, Any]  # the fields of `config.model`, explained in `resnet_jax.config`


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of network: how to build it, what it is called and what it needs.

    Attributes:
      create: the network of a config, a `WithHead`; raises ConfigError where a field of this
        family is out of its range.
      title: what a network is called, such as 'ResNet-50', 'plain-34' or 'VGG-16'.
      traits: what distinguishes networks of this title, in words.
      normalises: whether a network has batch normalisation.
      architecture: fields of `config.model`, besides 'family' and 'depth', that decide which
        weights fit and what they compute.
      least_size: height and width in pixels of the smallest images that the family is made for.
      named: the network of a name such as 'resnet50', with the paper's fields; None: not one of
        this family.
      names: examples of such names, to suggest.
    """

    create: Callable[[ModelConfig], nn.Module]
    title: Callable[[ModelConfig], str]
    traits: Callable[[ModelConfig], tuple[str, ...]] = lambda config: ()
    normalises: Callable[[ModelConfig], bool] = lambda config: True
    architecture: tuple[str, ...] = ('width', 'bn_epsilon')
    least_size: int = 1
    named: Callable[[str], nn.Module | None] = lambda name: None
    names: tuple[str, ...] = ()


_FAMILIES: dict[str, Family] = {}


def register(name: str, family: Family) -> None:
    """Registers a family under its name in `config.model.family`."""
    _FAMILIES[name] = family


def family_of(config: ModelConfig) -> Family:
    """Returns the family of `config.model`.

    A name with a dot is a module that Python can import, such as 'my_package.my_network', and that
    registers itself under this name.

    Raises:
      ConfigError: there is no such family.
    """
    name = config['family']
    if name not in _FAMILIES and isinstance(name, str) and '.' in name and all(
            part.isidentifier() for part in name.split('.')):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
                raise  # the module is there, and what it imports is not
    if name not in _FAMILIES:
        raise ConfigError(f'model.family must be one of {", ".join(_FAMILIES)}, or a module that '
                          f'registers itself under its name, got {name!r}.')
    return _FAMILIES[name]


def named(name: str) -> nn.Module:
    """Creates a network by name, such as 'resnet50', with the paper's settings.

    Where families share a name, as ResNet-50 does with 6n + 2 layers for CIFAR, the one that was
    registered first has it.

    Raises:
      ConfigError: there is none; the sentence gives the nearest names.
    """
    for family in _FAMILIES.values():
        if (network := family.named(name)) is not None:
            return network
    known = [name for family in _FAMILIES.values() for name in family.names]
    plain = name.rpartition('/')[2].partition('.')[0].lower()  # of 'hf:timm/resnet50.a1_in1k'
    nearest = ([one for one in known if one.startswith(plain)][:4]
               or difflib.get_close_matches(plain, known, n=4, cutoff=0.4) or known)
    hint = '' if plain == name.lower() else (
        '; trained weights are loaded by resnet_jax.load, such as '
        "resnet_jax.load('hf:timm/resnet50.a1_in1k')")
    raise ConfigError(f'there is no network {name!r}; the nearest names are '
                      f'{", ".join(nearest)}{hint}.')


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a `WithHead` that every family takes from the config."""
    return dict(
        num_classes=config['num_classes'],
        width=config['width'],
        virtual_batch_size=config['virtual_batch_size'],
        bn_momentum=config['bn_momentum'],
        bn_epsilon=config['bn_epsilon'],
        bn_unbiased_variance=config['bn_unbiased_variance'],
        dtype=jnp.dtype(config['dtype']),
        remat=config['remat'],
    )
