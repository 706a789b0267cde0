"""The residual networks of the paper, their plain counterparts, and what others made of them.

ResNeXt (S. Xie et al., 2017) divides the channels of the 3x3 convolutions into groups, wide
residual networks (S. Zagoruyko and N. Komodakis, 2016) have more of them, and ResNet-D (T. He et
al., "Bag of Tricks for Image Classification", 2019) changes the stem and the shortcuts.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models.backbone import Backbone, WithHead
from resnet_jax.models.blocks import (
    STACKED,
    BasicBlock,
    Block,
    BottleneckBlock,
    Shortcut,
    Stage,
)
from resnet_jax.models.conv import Conv
from resnet_jax.models.depth import rates
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.registry import Family, common_fields, family_of, register
from resnet_jax.models.stem import Stem

__all__ = ['ARCHITECTURE', 'CIFAR_DEPTHS', 'IMAGENET', 'STACKED', 'ResNet', 'ResNetBackbone',
           'architecture', 'create', 'fields_of', 'strides', 'title', 'traits', 'trunk_of']

# Table 1: the block, and how many of them each stage has.
IMAGENET = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
}
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # table 6; every other 6n + 2 can be had as well
# Fields of `config.model` that decide which weights fit and what they compute; see `Family`.
ARCHITECTURE = ('width', 'stem_width', 'deep_stem', 'bottleneck', 'bottleneck_width', 'groups',
                'plain', 'shortcut', 'stride_in', 'pool_pad', 'bn_epsilon')


def architecture(family: str, depth: int,
                 bottleneck: bool = False) -> tuple[type[Block], tuple[int, ...]]:
    """The block, and the number of blocks in each stage.

    Args:
      family: 'imagenet' or 'cifar'.
      depth: see `config.model`.
      bottleneck: whether blocks for CIFAR are bottlenecks; for ImageNet the depth decides.

    Raises:
      ConfigError: the family has no network of this depth.
    """
    if family == 'imagenet':
        if depth not in IMAGENET:
            raise ConfigError(f'model.depth must be one of {", ".join(map(str, IMAGENET))} for the '
                              f'imagenet family, got {depth}.')
        return IMAGENET[depth]
    layers = 9 if bottleneck else 6  # of a block in each of the three stages
    n, remainder = divmod(depth - 2, layers)
    if n < 1 or remainder:
        nearest = layers * max(1, round((depth - 2) / layers)) + 2
        examples = ', '.join(str(layers * n + 2) for n in (1, 2, 3))
        raise ConfigError(f'model.depth must be {layers}n + 2 for the cifar family'
                          f'{" with bottlenecks" if bottleneck else ""} ({examples}, …), '
                          f'got {depth}; the nearest is {nearest}.')
    return BottleneckBlock if bottleneck else BasicBlock, (n, n, n)  # section 4.2


class ResNetBackbone(Backbone):
    """A residual network without its last layer, or its plain twin: 'stem', 'stage1', 'stage2', ….

    The defaults are the paper's for ImageNet. Any height and width will do, since the network is
    fully convolutional.

    Attributes:
      block: `BasicBlock` or `BottleneckBlock`, or those of `resnet_jax.models.resnet_v2`.
      stage_sizes: blocks in each stage; every stage but the first starts with stride 2, and has
        twice as many filters as the one before it.
      stem_kind: 'imagenet': 7x7 convolution and max-pooling, both of stride 2; 'cifar': one 3x3.
      stem_width: filters of this convolution; None: `width`, as in the paper.
      deep_stem: see `Stem`.
      bottleneck_width: filters of the 3x3 convolutions of the first stage's bottlenecks; None:
        `width`, as in the paper.
      groups: of these convolutions.
      plain: leave out the shortcuts.
      shortcut: option 'A', 'B' or 'C' of section 3.3, or 'D'; see `Shortcut`.
      stride_in: where a bottleneck has its stride, 'v1' or 'v1.5'.
      pool_pad: see `Stem`.
      zero_init_last_gamma: start every block as the identity.
      stochastic_depth: the rate of the last block; see `resnet_jax.models.depth`.
      unroll: see `Stage`.
    """

    block: type[Block]
    stage_sizes: tuple[int, ...]
    stem_kind: str = 'imagenet'
    stem_width: int | None = None
    deep_stem: bool = False
    bottleneck_width: int | None = None
    groups: int = 1
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

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, num_devices=self.num_devices)
        norm = functools.partial(BatchNorm, **self.norm_fields())
        preactivated = self.block.preactivated
        self.stem = Stem(self.stem_kind, self.stem_width or self.width, self.deep_stem,
                         self.pool_pad, conv, None if preactivated else norm, self.remat)
        drop_rates = rates(self.stochastic_depth, sum(self.stage_sizes))
        for i, num_blocks in enumerate(self.stage_sizes):
            first = sum(self.stage_sizes[:i])
            norm = functools.partial(BatchNorm, **self.norm_fields() | {
                'virtual_batch_size': self.stage_batch(i)})
            shortcut = functools.partial(Shortcut, option=self.shortcut, conv=conv,
                                         norm=None if preactivated else norm)
            block = functools.partial(self.block, conv=conv, norm=norm, **self._block_fields(i),
                                      shortcut=None if self.plain else shortcut)
            setattr(self, f'stage{i + 1}', Stage(
                block, functools.partial(block, shared=True) if preactivated else block,
                num_blocks, features=self.width * 2**i, stride=self.stage_stride(i),
                unroll=self.unroll, remat=self.remat,
                drop_rates=drop_rates and drop_rates[first:first + num_blocks]))
        if preactivated:
            self.norm = norm()

    def _block_fields(self, i: int) -> dict[str, Any]:
        """The fields of the blocks of the stage of this index that depend on their kind."""
        fields: dict[str, Any] = {'stride_in': self.stride_in}
        if not self.block.preactivated:
            fields['last_scale_init'] = (nn.initializers.zeros if self.zero_init_last_gamma
                                         else nn.initializers.ones)
        if self.block.expansion > 1:
            fields['inner'] = (self.bottleneck_width or self.width) * 2**i
            fields['groups'] = self.groups
        return fields

    def run(self, stage: str, x: jax.Array, *, train: bool) -> jax.Array:
        """See `Backbone.run`; what is activated in front of blocks is so behind the last one."""
        x = super().run(stage, x, train=train)
        if self.block.preactivated and stage == self.stages[-1]:
            x = nn.relu(self.norm(x, train=train))
        return x


class ResNet(WithHead, ResNetBackbone):
    """A residual network, or its plain twin: see `ResNetBackbone` and `WithHead` for the fields.

    `ResNet(BottleneckBlock, (3, 4, 6, 3))` is the paper's ResNet-50.
    """


def create(config: Mapping[str, Any], kind: str, block: type[Block],
           stage_sizes: tuple[int, ...]) -> ResNet:
    """The network of `config.model` with these blocks.

    Args:
      config: the fields of `config.model`.
      kind: of the stem, 'imagenet' or 'cifar'.
      block, stage_sizes: see `ResNetBackbone`.

    Raises:
      ConfigError: a field is out of its range.
    """
    _check(config, kind, block)
    return ResNet(
        block, stage_sizes, stem_kind=kind, unroll=config['unroll'], **common_fields(config),
        **{name: config[name] for name in (
            'stem_width', 'deep_stem', 'bottleneck_width', 'groups', 'plain', 'shortcut',
            'stride_in', 'pool_pad', 'zero_init_last_gamma', 'stochastic_depth')})


def fields_of(network: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The fields of a network that a class has too, by their names."""
    return {field.name: getattr(network, field.name) for field in dataclasses.fields(kind)
            if field.name not in ('parent', 'name')}


def trunk_of(section: Mapping[str, Any], what: str) -> ResNet:
    """The residual network of a section `model` that another network is made from.

    Args:
      section: the fields of `config.model`.
      what: the other one, such as 'a detector', for messages.

    Raises:
      ConfigError: the family has no residual stages, or it has a field that only classifiers have.
    """
    network = family_of(section).create(section)
    if not isinstance(network, ResNet):
        raise ConfigError(f'{what} needs a residual network: model.family must be imagenet or '
                          f'cifar, got {section["family"]}.')
    if network.stochastic_depth:
        raise ConfigError(f'model.stochastic_depth must be 0 for {what}, got '
                          f'{network.stochastic_depth}.')
    return network


def _check(config: Mapping[str, Any], kind: str, block: type[Block]) -> None:
    for field in ('zero_init_last_gamma', 'stochastic_depth'):
        if config['plain'] and config[field]:
            raise ConfigError(f'model.{field} needs shortcuts: with model.plain the output of a '
                              'block would be zero.')
    stem_width, least = config['stem_width'], config['width'] * block.expansion
    if stem_width is not None and stem_width < 1:
        raise ConfigError(f'model.stem_width must be at least 1, got {stem_width}.')
    if config['shortcut'] == 'A' and not config['plain'] and (stem_width or 0) > least:
        raise ConfigError(f'model.stem_width must be at most {least}, the channels of the first '
                          'stage, since shortcuts of option A can only add channels; got '
                          f'{stem_width}.')
    if config['deep_stem'] and kind != 'imagenet':
        raise ConfigError('model.deep_stem needs model.family=imagenet: networks for CIFAR have a '
                          'single 3x3 convolution.')
    if config['deep_stem'] and (stem_width or config['width']) < 2:
        raise ConfigError('model.deep_stem needs at least two filters: set model.stem_width.')
    groups, inner = config['groups'], config['bottleneck_width']
    if block.expansion == 1 and (groups, inner) != (1, None):
        raise ConfigError('model.groups and model.bottleneck_width need bottlenecks, and this '
                          'network has blocks of two 3x3 convolutions: set model.depth to 50 or '
                          'more, or for CIFAR model.bottleneck=true.')
    if groups < 1 or (inner or config['width']) % groups:
        raise ConfigError(f'model.groups must divide the {inner or config["width"]} filters of '
                          f'the 3x3 convolutions (model.bottleneck_width), got {groups}.')


def _create(config: Mapping[str, Any]) -> ResNet:
    return create(config, config['family'], *_architecture(config))


def _architecture(config: Mapping[str, Any]) -> tuple[type[Block], tuple[int, ...]]:
    return architecture(config['family'].removesuffix('_v2'), config['depth'],
                        config['bottleneck'])


def title(config: Mapping[str, Any]) -> str:
    """What a network is called, such as 'ResNet-50', 'plain-34' or 'ResNeXt-50 32x4d'."""
    width, depth = config['bottleneck_width'] or config['width'], config['depth']
    if config['plain']:
        return f'plain-{depth}'
    # timm's letters.
    variant = f'{depth}{"-D" if config["shortcut"] == "D" else "-C"}' if config[
        'deep_stem'] else depth
    if config['groups'] > 1:
        return f'ResNeXt-{variant} {config["groups"]}x{width // config["groups"]}d'
    if width > config['width']:
        return f'Wide ResNet-{variant}-{width / config["width"]:g}'
    return f'ResNet-{variant}'


def traits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What distinguishes networks of this title, in words."""
    shortcut = 'no shortcuts' if config['plain'] else f'shortcut {config["shortcut"]}'
    return (shortcut, *strides(config))


def strides(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the network of `config.model` has its strides, in words, if there is a choice."""
    is_bottleneck = _architecture(config)[0] is BottleneckBlock
    return (f'stride {config["stride_in"]}',) if is_bottleneck else ()


def _variant(name: str) -> tuple[int, dict[str, Any]] | None:
    """The depth that a name gives, and the fields of `ResNet` in which it differs from 'resnet'."""
    if match := re.fullmatch(r'(resnet|plain)(\d+)', name):
        return int(match[2]), {'plain': match[1] == 'plain'}
    stride = {'stride_in': 'v1.5'}  # as in the code of their authors
    if match := re.fullmatch(r'resnet(\d+)d', name):
        return int(match[1]), {'deep_stem': True, 'shortcut': 'D', **stride}
    if match := re.fullmatch(r'resnext(\d+)_(\d+)x(\d+)d', name):
        depth, groups, width = map(int, match.groups())
        return depth, {'groups': groups, 'bottleneck_width': groups * width, **stride}
    if match := re.fullmatch(r'wide_resnet(\d+)_(\d+)', name):
        return int(match[1]), {'bottleneck_width': ResNet.width * int(match[2]), **stride}
    return None


def _named(family: str, name: str, defaults: Mapping[str, Any]) -> ResNet | None:
    """The network of a name such as 'resnet50' or 'resnext50_32x4d', if the family has it."""
    depth, fields = _variant(name) or (0, {})
    try:
        block, sizes = architecture(family, depth)
    except ConfigError:
        return None
    if (block.expansion == 1 and 'bottleneck_width' in fields) or (
            family == 'cifar' and 'plain' not in fields):
        return None
    return ResNet(block, sizes, stem_kind=family, **fields, **defaults)


def _names(depths: Any) -> tuple[str, ...]:
    return tuple(f'{kind}{depth}' for kind in ('resnet', 'plain') for depth in depths)


VARIANTS = (*(f'resnet{depth}d' for depth in IMAGENET), 'resnext50_32x4d', 'resnext101_32x8d',
            'resnext101_64x4d', 'wide_resnet50_2', 'wide_resnet101_2')
_imagenet = Family(
    create=_create, title=title, traits=traits, least_size=32, architecture=ARCHITECTURE,
    named=functools.partial(_named, 'imagenet', defaults={}),
    names=(*_names(IMAGENET), *VARIANTS))
register('imagenet', _imagenet)
register('cifar', dataclasses.replace(
    _imagenet, least_size=4, names=_names(CIFAR_DEPTHS),
    named=functools.partial(_named, 'cifar', defaults={
        'width': 16, 'shortcut': 'A', 'num_classes': 10})))
