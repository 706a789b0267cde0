"""The residual networks of the paper and their plain counterparts."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from resnet_jax.models.backbone import Backbone, WithHead
from resnet_jax.models.blocks import (
    STACKED,
    BasicBlock,
    BottleneckBlock,
    ModuleDef,
    Shortcut,
    Stage,
)
from resnet_jax.models.conv import Conv
from resnet_jax.models.depth import rates
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.pool import max_pool
from resnet_jax.models.registry import Family, common_fields, register
from resnet_jax.models.remat import remat

__all__ = ['CIFAR_DEPTHS', 'IMAGENET', 'STACKED', 'ResNet', 'ResNetBackbone', 'architecture',
           'strides']

# Table 1: the block, and how many of them each stage has.
IMAGENET = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
}
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # table 6; every other 6n + 2 can be had as well


def architecture(family: str, depth: int) -> tuple[type[nn.Module], tuple[int, ...]]:
    """The block, and the number of blocks in each stage.

    Raises:
      ConfigError: the family has no network of this depth.
    """
    if family == 'imagenet':
        if depth not in IMAGENET:
            raise ConfigError(f'model.depth must be one of {", ".join(map(str, IMAGENET))} for the '
                              f'imagenet family, got {depth}.')
        return IMAGENET[depth]
    n, remainder = divmod(depth - 2, 6)
    if n < 1 or remainder:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        raise ConfigError(f'model.depth must be 6n + 2 for the cifar family (8, 14, 20, …), '
                          f'got {depth}; the nearest is {nearest}.')
    return BasicBlock, (n, n, n)  # section 4.2


class ResNetBackbone(Backbone):
    """A residual network without its last layer, or its plain twin: 'stem', 'stage1', 'stage2', ….

    The defaults are the paper's for ImageNet. Any height and width will do, since the network is
    fully convolutional.

    Attributes:
      block: `BasicBlock` or `BottleneckBlock`.
      stage_sizes: blocks in each stage; every stage but the first starts with stride 2, and has
        twice as many filters as the one before it.
      stem_kind: 'imagenet': 7x7 convolution and max-pooling, both of stride 2; 'cifar': one 3x3.
      stem_width: filters of this convolution; None: `width`, as in the paper.
      plain: leave out the shortcuts.
      shortcut: option 'A', 'B' or 'C' of section 3.3.
      stride_in: where a bottleneck has its stride, 'v1' or 'v1.5'.
      pool_pad: see `Stem`.
      zero_init_last_gamma: start every block as the identity.
      stochastic_depth: the rate of the last block; see `resnet_jax.models.depth`.
      unroll: see `Stage`.
    """

    block: type[nn.Module]
    stage_sizes: tuple[int, ...]
    stem_kind: str = 'imagenet'
    stem_width: int | None = None
    plain: bool = False
    shortcut: str = 'B'
    stride_in: str = 'v1'
    pool_pad: str = 'both'
    zero_init_last_gamma: bool = False
    stochastic_depth: float = 0.0
    unroll: bool = True

    @property
    def stages(self) -> tuple[str, ...]:
        return ('stem', *(f'stage{i + 1}' for i in range(len(self.stage_sizes))))

    def stage_stride(self, i: int) -> int:
        """The stride of the stage of this index, which is 0 for 'stage1'."""
        return 1 if i == 0 else 2

    def stage_batch(self, i: int) -> int | None:
        """The size of the virtual batches of this stage; see `BatchNorm`."""
        del i
        return self.virtual_batch_size

    def setup(self):
        conv = functools.partial(Conv, dtype=self.dtype, num_devices=self.num_devices)
        norm = functools.partial(BatchNorm, **self.norm_fields())
        block = functools.partial(
            self.block, stride_in=self.stride_in, conv=conv,
            last_scale_init=(nn.initializers.zeros if self.zero_init_last_gamma
                             else nn.initializers.ones))
        self.stem = Stem(self.stem_kind, self.stem_width or self.width, self.pool_pad, conv, norm,
                         self.remat)
        drop_rates = rates(self.stochastic_depth, sum(self.stage_sizes))
        for i, num_blocks in enumerate(self.stage_sizes):
            first = sum(self.stage_sizes[:i])
            norm = functools.partial(BatchNorm, **self.norm_fields() | {
                'virtual_batch_size': self.stage_batch(i)})
            shortcut = functools.partial(Shortcut, option=self.shortcut, conv=conv, norm=norm)
            setattr(self, f'stage{i + 1}', Stage(
                functools.partial(block, norm=norm, shortcut=None if self.plain else shortcut),
                num_blocks, features=self.width * 2**i, stride=self.stage_stride(i),
                unroll=self.unroll, remat=self.remat,
                drop_rates=drop_rates and drop_rates[first:first + num_blocks]))


class ResNet(WithHead, ResNetBackbone):
    """A residual network, or its plain twin: see `ResNetBackbone` and `WithHead` for the fields.

    `ResNet(BottleneckBlock, (3, 4, 6, 3))` is the paper's ResNet-50.
    """


class Stem(nn.Module):
    """Everything in front of the first stage (table 1; section 4.2).

    Attributes:
      kind: 'imagenet' or 'cifar'.
      features: filters of the convolution.
      pool_pad: where the max-pooling pads a pixel: at 'both' ends of the height and the width, as
        PyTorch does, or at the 'end', which is what Caffe's rounding up amounts to. The windows
        lie one pixel apart, so weights for one lose accuracy under the other.
      remat: what the gradient keeps; see `resnet_jax.models.remat`.
    """

    kind: str
    features: int
    pool_pad: str
    conv: ModuleDef
    norm: ModuleDef
    remat: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        """'imagenet': [N, H, W, C] -> [N, H / 4, W / 4, features]; 'cifar': keeps H and W."""
        return remat(functools.partial(Stem._run, train=train), self.remat)(self, x)

    def _run(self, x, *, train):
        size, stride = (3, 1) if self.kind == 'cifar' else (7, 2)
        x = self.conv(self.features, size, stride, name='conv')(x)
        x = nn.relu(self.norm(name='norm')(x, train=train))
        if self.kind == 'cifar':
            return x
        return max_pool(x, 3, 2, (1, 1) if self.pool_pad == 'both' else (0, 1))


def _create(config: Mapping[str, Any]) -> ResNet:
    for field in ('zero_init_last_gamma', 'stochastic_depth'):
        if config['plain'] and config[field]:
            raise ConfigError(f'model.{field} needs shortcuts: with model.plain the output of a '
                              'block would be zero.')
    block, stage_sizes = architecture(config['family'], config['depth'])
    stem_width, least = config['stem_width'], config['width'] * block.expansion
    if stem_width is not None and stem_width < 1:
        raise ConfigError(f'model.stem_width must be at least 1, got {stem_width}.')
    if config['shortcut'] == 'A' and not config['plain'] and (stem_width or 0) > least:
        raise ConfigError(f'model.stem_width must be at most {least}, the channels of the first '
                          'stage, since shortcuts of option A can only add channels; got '
                          f'{stem_width}.')
    return ResNet(
        block, stage_sizes, stem_kind=config['family'], stem_width=stem_width,
        plain=config['plain'], shortcut=config['shortcut'], stride_in=config['stride_in'],
        pool_pad=config['pool_pad'], zero_init_last_gamma=config['zero_init_last_gamma'],
        stochastic_depth=config['stochastic_depth'],
        unroll=config['unroll'], **common_fields(config))


def _title(config: Mapping[str, Any]) -> str:
    return f'{"plain" if config["plain"] else "ResNet"}-{config["depth"]}'


def _traits(config: Mapping[str, Any]) -> tuple[str, ...]:
    shortcut = 'no shortcuts' if config['plain'] else f'shortcut {config["shortcut"]}'
    return (shortcut, *strides(config))


def strides(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the network of `config.model` has its strides, in words, if there is a choice."""
    is_bottleneck = architecture(config['family'], config['depth'])[0] is BottleneckBlock
    return (f'stride {config["stride_in"]}',) if is_bottleneck else ()


def _named(family: str, name: str, defaults: Mapping[str, Any]) -> ResNet | None:
    """The network of a name such as 'resnet50' or 'plain34', if the family has it."""
    match = re.fullmatch(r'(resnet|plain)(\d+)', name)
    try:
        block, sizes = architecture(family, int(match[2])) if match else (None, None)
    except ConfigError:
        return None
    if block is None:
        return None
    return ResNet(block, sizes, stem_kind=family, plain=match[1] == 'plain', **defaults)


def _names(depths: Any) -> tuple[str, ...]:
    return tuple(f'{kind}{depth}' for kind in ('resnet', 'plain') for depth in depths)


_imagenet = Family(
    create=_create, title=_title, traits=_traits, least_size=32,
    architecture=('width', 'stem_width', 'plain', 'shortcut', 'stride_in', 'pool_pad',
                  'bn_epsilon'),
    named=functools.partial(_named, 'imagenet', defaults={}), names=_names(IMAGENET))
register('imagenet', _imagenet)
register('cifar', dataclasses.replace(
    _imagenet, least_size=4, names=_names(CIFAR_DEPTHS),
    named=functools.partial(_named, 'cifar', defaults={
        'width': 16, 'shortcut': 'A', 'num_classes': 10})))
