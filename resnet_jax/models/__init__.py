"""The networks of the paper, and the modules they are built from."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.models import vgg
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.remat import POLICIES
from resnet_jax.models.resnet import CIFAR_DEPTHS, IMAGENET, ResNet, architecture

__all__ = [
    'CIFAR_DEPTHS', 'FAMILIES', 'IMAGENET', 'ConfigError', 'ResNet', 'architecture', 'create']

FAMILIES = ('imagenet', 'cifar', 'vgg')
CHOICES = {
    'family': FAMILIES,
    'shortcut': ('A', 'B', 'C'),
    'stride_in': ('v1', 'v1.5'),
    'pool_pad': ('both', 'end'),
    'dtype': ('float32', 'bfloat16'),
    'remat': tuple(POLICIES),
}


def create(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config.model` describes; its fields are explained in `resnet_jax.config`.

    `variables = network.init(key, images, train=False)` makes the parameters ('params') and the
    running statistics ('batch_stats'); `network.apply(variables, images, train=False)` gives the
    class scores, float32 [N, num_classes].

    Raises:
      ConfigError: a field is out of its range; the sentence names the field and the range.
    """
    for field, choices in CHOICES.items():
        if config[field] not in choices:
            raise ConfigError(
                f'model.{field} must be one of {", ".join(choices)}, got {config[field]!r}.')
    for field in ('num_classes', 'width'):
        if config[field] is None or config[field] < 1:
            raise ConfigError(f'model.{field} must be at least 1, got {config[field]}.')
    common = dict(
        num_classes=config['num_classes'],
        width=config['width'],
        virtual_batch_size=config['virtual_batch_size'],
        bn_momentum=config['bn_momentum'],
        bn_epsilon=config['bn_epsilon'],
        bn_unbiased_variance=config['bn_unbiased_variance'],
        dtype=jnp.dtype(config['dtype']),
        remat=config['remat'],
    )
    if config['stem_space_to_depth'] and config['family'] != 'imagenet':
        raise ConfigError('model.stem_space_to_depth is for the imagenet family only, whose first '
                          'convolution is of 7x7 pixels and stride 2.')
    if config['family'] == 'vgg':
        if config['depth'] not in vgg.STAGE_SIZES:
            raise ConfigError(
                f'model.depth must be 16 or 19 for the vgg family, got {config["depth"]}.')
        return vgg.VGG(vgg.STAGE_SIZES[config['depth']], batch_norm=config['batch_norm'],
                       dropout_rate=config['dropout_rate'], **common)
    if config['plain'] and config['zero_init_last_gamma']:
        raise ConfigError('model.zero_init_last_gamma needs shortcuts: with model.plain every '
                          'output would be zero.')
    block, stage_sizes = architecture(config['family'], config['depth'])
    return ResNet(
        block, stage_sizes, stem=config['family'], plain=config['plain'],
        shortcut=config['shortcut'], stride_in=config['stride_in'], pool_pad=config['pool_pad'],
        zero_init_last_gamma=config['zero_init_last_gamma'], unroll=config['unroll'],
        stem_space_to_depth=config['stem_space_to_depth'], **common)
