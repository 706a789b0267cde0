"""The parts of a residual network: shortcuts (section 3.3), blocks (figure 5), stages (table 1)."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.depth import STREAM, drop_branch
from resnet_jax.models.pool import average_pool
from resnet_jax.models.relu import relu
from resnet_jax.models.remat import remat

ModuleDef = Any  # a module class, some of whose fields are already set

STACKED = 'blocks'  # parameters below this name are stacked block by block; see `Stage`


class Shortcut(nn.Module):
    """What is added to a block's branch (section 3.3): the input itself where the shape allows.

    Attributes:
      option: where the shape changes, 'A' takes every stride-th pixel and pads the channels with
        zeros, half on either side, and has no parameters; 'B' projects by a 1x1 convolution; 'C'
        projects in every block, also where the shape stays; 'D' projects as 'B' does, but averages
        2x2 pixels instead of skipping three of four (T. He et al., "Bag of Tricks for Image
        Classification", 2019, figure 2c).
      norm: makes the normalisation of a projection; None: there is none.
    """

    option: str
    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features]."""
        changes = self.stride != 1 or x.shape[-1] != self.features
        if self.option == 'C' or (self.option in ('B', 'D') and changes):
            stride = self.stride
            if self.option == 'D' and stride == 2:
                x, stride = average_pool(x), 1
            x = self.conv(self.features, 1, stride, name='conv')(x)
            return x if self.norm is None else self.norm(name='norm')(x, train=train)
        if changes:
            missing = self.features - x.shape[-1]
            x = x[:, ::self.stride, ::self.stride]
            return jnp.pad(x, ((0, 0),) * 3 + ((missing // 2, missing - missing // 2),))
        return x


class Block(nn.Module):
    """What all blocks have; `Stage` makes and calls them.

    Attributes:
      features: filters of a block of two 3x3 convolutions, or a quarter of those of a bottleneck.
      stride: of the block.
      stride_in: see `BottleneckBlock`.
      conv, norm: make a convolution and a normalisation.
      shortcut: makes the `Shortcut`; None in a plain network.
      expansion: output channels over `features`.
      preactivated: whether normalisation and ReLU come in front of the convolutions; see
        `resnet_jax.models.resnet_v2`.
    """

    features: int
    stride: int
    stride_in: str
    conv: ModuleDef
    norm: ModuleDef
    shortcut: ModuleDef | None

    expansion: ClassVar[int]
    preactivated: ClassVar[bool] = False


class BasicBlock(Block):
    """Two 3x3 convolutions (figure 5, left).

    Attributes:
      features, stride, stride_in, conv, norm, shortcut: see `Block`; the first convolution has the
        stride.
      last_scale_init: initialiser of the last gamma.
      last_relu: of the sum; see `resnet_jax.models.relu`.
    """

    last_scale_init: nn.initializers.Initializer
    last_relu: Callable

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | float | None = None, *,
                 train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features].

        For `drop_rate` see `drop_branch`.
        """
        y = self.conv(self.features, 3, self.stride, name='conv1')(x)
        y = nn.relu(self.norm(name='norm1')(y, train=train))
        y = self.conv(self.features, 3, name='conv2')(y)
        y = self.norm(name='norm2', scale_init=self.last_scale_init)(y, train=train)
        if self.shortcut is None:
            return self.last_relu(y)
        y = drop_branch(self, y, drop_rate, train=train)
        shortcut = self.shortcut(features=self.features, stride=self.stride, name='shortcut')
        # Equation (1), y = F(x) + x, or (2) where the shortcut projects; then the second ReLU.
        return self.last_relu(y + shortcut(x, train=train))


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions (figure 5, right).

    Attributes:
      features, stride, conv, norm, shortcut: see `Block`.
      stride_in: 'v1': the first 1x1 convolution has the stride, as in the paper; 'v1.5': the 3x3
        convolution has it, as in torchvision.
      last_scale_init: initialiser of the last gamma.
      last_relu: of the sum; see `resnet_jax.models.relu`.
      inner: filters of the first two convolutions; None: `features`, as in the paper.
      groups: of the 3x3 convolution; see `resnet_jax.models.conv.conv2d`.
    """

    last_scale_init: nn.initializers.Initializer
    last_relu: Callable
    inner: int | None = None
    groups: int = 1

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | float | None = None, *,
                 train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), 4 * features].

        For `drop_rate` see `drop_branch`.
        """
        first, second = (self.stride, 1) if self.stride_in == 'v1' else (1, self.stride)
        features, inner = self.features * self.expansion, self.inner or self.features
        y = self.conv(inner, 1, first, name='conv1')(x)
        y = nn.relu(self.norm(name='norm1')(y, train=train))
        y = self.conv(inner, 3, second, groups=self.groups, name='conv2')(y)
        y = nn.relu(self.norm(name='norm2')(y, train=train))
        y = self.conv(features, 1, name='conv3')(y)
        y = self.norm(name='norm3', scale_init=self.last_scale_init)(y, train=train)
        if self.shortcut is None:
            return self.last_relu(y)
        y = drop_branch(self, y, drop_rate, train=train)
        shortcut = self.shortcut(features=features, stride=self.stride, name='shortcut')
        # Equation (1), y = F(x) + x, or (2) where the shortcut projects; then the second ReLU.
        return self.last_relu(y + shortcut(x, train=train))


class Stage(nn.Module):
    """Blocks of one width; only the first may change the shape.

    The others are scanned, so their parameters, below 'blocks', are stacked along a new first axis,
    and the tree of parameters does not depend on `unroll`.

    Attributes:
      block: makes a block from `features`, `stride` and `last_relu`.
      block1: makes the first one from the same.
      num_blocks: at least 1.
      features: the block's `features`.
      stride: of the first block.
      unroll: run the others as straight-line code instead of a loop.
      remat: what the gradient keeps of each block; see `resnet_jax.models.remat`.
      drop_rates: of stochastic depth, one per block; see `resnet_jax.models.depth`. None: without.
    """

    block: ModuleDef
    block1: ModuleDef
    num_blocks: int
    features: int
    stride: int
    unroll: bool
    remat: str
    drop_rates: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features * expansion]."""
        rates = self.drop_rates
        run = functools.partial(_run, train=train)
        block1 = self.block1(features=self.features, stride=self.stride, last_relu=relu,
                             name='block1')
        x = remat(run, self.remat)(block1, x, *(rates or ())[:1])
        others = self.num_blocks - 1
        if others:
            is_loop = others > 1 and not self.unroll
            body = remat(run, self.remat, in_loop=is_loop)
            x, _ = nn.scan(
                lambda block, x, rate: (body(block, x, *([] if rates is None else [rate])), None),
                variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
                split_rngs={'params': True, STREAM: True},
                length=others,
                # Initialisation runs once: in a loop, it compiles as fast at every depth.
                unroll=1 if is_loop or self.is_initializing() else others,
            )(self.block(features=self.features, stride=1,
                         last_relu=nn.relu if is_loop else relu, name=STACKED),
              x, None if rates is None else jnp.array(rates[1:], jnp.float32))
        return x


def _run(block: nn.Module, x, *drop_rate, train: bool):
    return block(x, *drop_rate, train=train)
