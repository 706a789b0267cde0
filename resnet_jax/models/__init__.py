"""The networks of the paper, and the modules they are built from."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

# Importing a family, or a kind of detector, registers it.
from resnet_jax.models import c4, fpn, resnet, resnet_v2, vgg  # noqa: F401
from resnet_jax.models.blocks import STACKED
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.registry import Family, common_fields, family_of, named, register
from resnet_jax.models.remat import POLICIES

__all__ = ['STACKED', 'ConfigError', 'Family', 'common_fields', 'create', 'family_of', 'named',
           'register', 'title']

CHOICES = {
    'shortcut': ('A', 'B', 'C', 'D'),
    'stride_in': ('v1', 'v1.5'),
    'pool_pad': ('both', 'end'),
    'dtype': ('float32', 'bfloat16'),
    'remat': tuple(POLICIES),
}


def create(config: Mapping[str, Any]) -> nn.Module:
    """Creates the network that `config.model` describes; see `resnet_jax.config.fields`.

    `variables = network.init(key, images, train=False)` makes the parameters ('params') and the
    running statistics ('batch_stats'); `network.apply(variables, images, train=False)` gives the
    class scores, float32 [N, num_classes], and with `method='features'` the feature maps by name.

    Raises:
      ConfigError: a field is out of its range; the sentence names the field and the range.
    """
    family = family_of(config)
    for field, choices in CHOICES.items():
        if config[field] not in choices:
            raise ConfigError(
                f'model.{field} must be one of {", ".join(choices)}, got {config[field]!r}.')
    for field in ('num_classes', 'width'):
        if config[field] is None or config[field] < 1:
            raise ConfigError(f'model.{field} must be at least 1, got {config[field]}.')
    return family.create(config)


def title(config: Mapping[str, Any]) -> str:
    """The name of the network of `config.model`, such as 'ResNet-50'."""
    return family_of(config).title(config)
