"""The residual networks of the paper and their plain counterparts."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.models.blocks import (
    BasicBlock,
    BottleneckBlock,
    ModuleDef,
    Shortcut,
    Stage,
    apply,
)
from resnet_jax.models.conv import Conv, he_normal
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.pool import max_pool
from resnet_jax.models.remat import remat

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


class ResNet(nn.Module):
    """A residual network, or its plain twin.

    Attributes:
      block: `BasicBlock` or `BottleneckBlock`.
      stage_sizes: blocks in each stage; every stage but the first starts with stride 2.
      stem: 'imagenet': 7x7 convolution and max-pooling, both of stride 2; 'cifar': one 3x3.
      num_classes: outputs.
      width: filters of the stem and of the first stage; every further stage has twice as many.
      plain: leave out the shortcuts.
      shortcut: option 'A', 'B' or 'C' of section 3.3.
      stride_in: where a bottleneck has its stride, 'v1' or 'v1.5'.
      pool_pad: see `Stem`.
      zero_init_last_gamma: start every block as the identity.
      virtual_batch_size, bn_momentum, bn_epsilon, bn_unbiased_variance: see `BatchNorm`.
      dtype: of the computation; parameters, statistics and the output are float32.
      unroll, remat: see `Stage`; the stem counts as a block.
      stem_space_to_depth: see `Stem`; of 'imagenet' only.
      bn_frozen: normalise by the running statistics in training too, and keep them.
      num_devices: that a batch is spread over; see `conv2d`.
    """

    block: type[nn.Module]
    stage_sizes: tuple[int, ...]
    stem: str
    num_classes: int
    width: int
    plain: bool
    shortcut: str
    stride_in: str
    pool_pad: str
    zero_init_last_gamma: bool
    virtual_batch_size: int | None
    bn_momentum: float
    bn_epsilon: float
    bn_unbiased_variance: bool
    dtype: Any
    unroll: bool
    remat: str
    stem_space_to_depth: bool
    bn_frozen: bool = False
    num_devices: int = 1

    @nn.compact
    def __call__(self, images, *, train: bool):
        """Class scores before the softmax.

        Args:
          images: float [N, H, W, C], normalised; any H and W, since the features are averaged over
            all positions (fully convolutional).
          train: normalise by batch statistics, and update the collection 'batch_stats'.

        Returns:
          float32 [N, num_classes].
        """
        conv = functools.partial(Conv, dtype=self.dtype, num_devices=self.num_devices)
        norm = functools.partial(
            BatchNorm, train=train and not self.bn_frozen,
            virtual_batch_size=self.virtual_batch_size, momentum=self.bn_momentum,
            epsilon=self.bn_epsilon, unbiased_variance=self.bn_unbiased_variance, dtype=self.dtype)
        shortcut = functools.partial(Shortcut, option=self.shortcut, conv=conv, norm=norm)
        block = functools.partial(
            self.block, stride_in=self.stride_in, conv=conv, norm=norm,
            shortcut=None if self.plain else shortcut,
            last_scale_init=(nn.initializers.zeros if self.zero_init_last_gamma
                             else nn.initializers.ones))

        stem = Stem(self.stem, self.width, self.pool_pad, self.stem_space_to_depth, conv, norm,
                    name='stem')
        x = remat(apply, self.remat)(stem, images.astype(self.dtype))
        for i, num_blocks in enumerate(self.stage_sizes):
            x = Stage(block, num_blocks, features=self.width * 2**i, stride=1 if i == 0 else 2,
                      unroll=self.unroll, remat=self.remat, name=f'stage{i + 1}')(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_normal, name='head')(x)


class Stem(nn.Module):
    """Everything in front of the first stage (table 1; section 4.2).

    Attributes:
      kind: 'imagenet' or 'cifar'.
      features: filters of the convolution.
      pool_pad: where the max-pooling pads a pixel: at 'both' ends of the height and the width, as
        PyTorch does, or at the 'end', which is what Caffe's rounding up amounts to. The windows
        lie one pixel apart, so weights for one lose accuracy under the other.
      space_to_depth: execute the 7x7 convolution on blocks of 2x2 pixels, with the same weights and
        results; see `space_to_depth_conv2d`.
    """

    kind: str
    features: int
    pool_pad: str
    space_to_depth: bool
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x):
        """'imagenet': [N, H, W, C] -> [N, H / 4, W / 4, features]; 'cifar': keeps H and W."""
        if self.kind == 'cifar':
            x = self.conv(self.features, 3, name='conv')(x)
            return nn.relu(self.norm(name='norm')(x))
        x = self.conv(self.features, 7, 2, self.space_to_depth, name='conv')(x)
        x = nn.relu(self.norm(name='norm')(x))
        pad = (1, 1) if self.pool_pad == 'both' else (0, 1)
        return max_pool(x, 3, 2, pad)
