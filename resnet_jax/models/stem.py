"""Stems: everything in front of the first stage (table 1; section 4.2)."""

import functools

import flax.linen as nn
import jax

from resnet_jax.models.blocks import ModuleDef
from resnet_jax.models.pool import max_pool
from resnet_jax.models.remat import remat


class Stem(nn.Module):
    """The convolution or convolutions, and for ImageNet the max-pooling, of a residual network.

    Attributes:
      kind: 'imagenet' or 'cifar'.
      features: filters of the last convolution.
      deep: three 3x3 convolutions, the first two of half the filters, in place of one 7x7 (T. He
        et al., "Bag of Tricks for Image Classification", 2019, figure 2b).
      pool_pad: where the max-pooling pads a pixel: at 'both' ends of the height and the width, as
        PyTorch does, or at the 'end', which is what Caffe's rounding up amounts to. The windows
        lie one pixel apart, so weights for one lose accuracy under the other.
      norm: makes the normalisations, each with its ReLU; None: a convolution has neither.
      remat: what the gradient keeps; see `resnet_jax.models.remat`.
    """

    kind: str
    features: int
    deep: bool
    pool_pad: str
    conv: ModuleDef
    norm: ModuleDef | None
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """'imagenet': [N, H, W, C] -> [N, H / 4, W / 4, features]; 'cifar': keeps H and W."""
        return remat(functools.partial(Stem._run, train=train), self.remat)(self, x)

    def _run(self, x, *, train):
        half = self.features // 2
        layers: tuple[tuple[str, int, int, int], ...]
        if self.deep:
            layers = (('', half, 3, 2), ('2', half, 3, 1), ('3', self.features, 3, 1))
        else:
            layers = (('', self.features, *((3, 1) if self.kind == 'cifar' else (7, 2))),)
        for number, features, size, stride in layers:
            x = self.conv(features, size, stride, name=f'conv{number}')(x)
            if self.norm is not None:
                x = nn.relu(self.norm(name=f'norm{number}')(x, train=train))
        if self.kind == 'cifar':
            return x
        return max_pool(x, 3, 2, (1, 1) if self.pool_pad == 'both' else (0, 1))
