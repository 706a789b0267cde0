"""Residual networks with pre-activation: K. He et al., "Identity Mappings", 2016, figure 4e.

Normalisation and ReLU come in front of each convolution instead of behind it, so nothing stands
between a sum and the next block; behind the last block they come once more. The first block of each
stage activates its input for both its branch and its shortcut, whose projections have no
normalisation of their own.

The networks for CIFAR are those of https://github.com/KaimingHe/resnet-1k-layers. For ImageNet the
first activation stands behind the max-pooling, as in timm and TensorFlow, and not before it as in
fb.resnet.torch.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models import resnet
from resnet_jax.models.blocks import BasicBlock, Block, BottleneckBlock
from resnet_jax.models.depth import drop_branch
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.registry import Family, register


class PreActivationBlock(Block):
    """Two 3x3 convolutions with pre-activation.

    Attributes:
      features, stride, conv, norm, shortcut: see `Block`; the first convolution has the stride.
      shared: whether the shortcut begins behind the first activation, and not in front of it.
      stride_in, last_relu: unused here.
    """

    last_relu: Callable
    shared: bool = False

    expansion = 1
    preactivated = True

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | float | None = None, *,
                 train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features].

        For `drop_rate` see `drop_branch`.
        """
        y = nn.relu(self.norm(name='norm1')(x, train=train))
        carried = y if self.shared else x
        y = self.conv(self.features, 3, self.stride, name='conv1')(y)
        y = nn.relu(self.norm(name='norm2')(y, train=train))
        y = self.conv(self.features, 3, name='conv2')(y)
        if self.shortcut is None:
            return y
        y = drop_branch(self, y, drop_rate, train=train)
        shortcut = self.shortcut(features=self.features, stride=self.stride, name='shortcut')
        return y + shortcut(carried, train=train)


class PreActivationBottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions with pre-activation.

    Attributes:
      shared: whether the shortcut begins behind the first activation, and not in front of it.
      last_relu: unused here.
      features, stride, stride_in, shortcut, inner, groups: see `BottleneckBlock`.
    """

    last_relu: Callable
    inner: int | None = None
    groups: int = 1
    shared: bool = False

    expansion = 4
    preactivated = True

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | float | None = None, *,
                 train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), 4 * features].

        For `drop_rate` see `drop_branch`.
        """
        first, second = (self.stride, 1) if self.stride_in == 'v1' else (1, self.stride)
        features, inner = self.features * self.expansion, self.inner or self.features
        y = nn.relu(self.norm(name='norm1')(x, train=train))
        carried = y if self.shared else x
        y = self.conv(inner, 1, first, name='conv1')(y)
        y = nn.relu(self.norm(name='norm2')(y, train=train))
        y = self.conv(inner, 3, second, groups=self.groups, name='conv2')(y)
        y = nn.relu(self.norm(name='norm3')(y, train=train))
        y = self.conv(features, 1, name='conv3')(y)
        if self.shortcut is None:
            return y
        y = drop_branch(self, y, drop_rate, train=train)
        shortcut = self.shortcut(features=features, stride=self.stride, name='shortcut')
        return y + shortcut(carried, train=train)


BLOCKS: dict[type[Block], type[Block]] = {
    BasicBlock: PreActivationBlock, BottleneckBlock: PreActivationBottleneck}
SHORTCUTS = ('A', 'B')


def architecture(family: str, depth: int,
                 bottleneck: bool = False) -> tuple[type[Block], tuple[int, ...]]:
    """As `resnet.architecture`, for the families 'imagenet_v2' and 'cifar_v2'."""
    kind = family.removesuffix('_v2')
    block, sizes = resnet.architecture(kind, depth, bottleneck)
    if kind == 'imagenet' and block is BasicBlock:
        raise ConfigError(f'model.depth must be 50, 101 or 152 for the {family} family, got '
                          f'{depth}: its networks have bottlenecks.')
    return BLOCKS[block], sizes


def _create(config: Mapping[str, Any]) -> resnet.ResNet:
    family = config['family']
    block, sizes = architecture(family, config['depth'], config['bottleneck'])
    if config['shortcut'] not in SHORTCUTS:
        raise ConfigError(f'model.shortcut must be {" or ".join(SHORTCUTS)} for the {family} '
                          f'family, got {config["shortcut"]!r}.')
    for field in ('zero_init_last_gamma', 'deep_stem'):
        if config[field]:
            raise ConfigError(f'model.{field} must be false for the {family} family.')
    return resnet.create(config, family.removesuffix('_v2'), block, sizes)


def _title(config: Mapping[str, Any]) -> str:
    return f'{resnet.title(config)} v2'


def _named(family: str, bottlenecks: tuple[int, ...], defaults: Mapping[str, Any],
           name: str) -> resnet.ResNet | None:
    """The network of a name such as 'resnetv2_50', if the family has it."""
    match = re.fullmatch(r'resnetv2_(\d+)', name)
    depth = int(match[1]) if match else 0
    try:
        block, sizes = architecture(family, depth, depth in bottlenecks)
    except ConfigError:
        return None
    if block.expansion > 1:
        defaults = {**defaults, 'shortcut': 'B'}
    return resnet.ResNet(block, sizes, stem_kind=family.removesuffix('_v2'), **defaults)


def _register(family: str, least_size: int, names: tuple[str, ...],
              bottlenecks: tuple[int, ...] = (), **defaults: Any) -> None:
    register(family, Family(
        create=_create, title=_title, traits=resnet.traits, least_size=least_size,
        architecture=resnet.ARCHITECTURE, names=names,
        named=functools.partial(_named, family, bottlenecks, defaults)))


_register('imagenet_v2', 32, ('resnetv2_50', 'resnetv2_101', 'resnetv2_152'), stride_in='v1.5')
# Section 4: ResNet-164 and ResNet-1001 have bottlenecks.
_register('cifar_v2', 4, ('resnetv2_110', 'resnetv2_164', 'resnetv2_1001'), (164, 1001),
          width=16, shortcut='A', num_classes=10)
