"""VGG-16 and VGG-19, which the paper compares with (table 1 and section 3.3)."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.models.conv import Conv, he_normal
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.pool import max_pool
from resnet_jax.models.remat import remat

# K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks", 2015, table 1, columns D and E.
STAGE_SIZES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WINDOW = 7  # pixels a side that the first dense layer sees: 224 / 2**5
MIN_IMAGE_SIZE = WINDOW * 2 ** 5


class VGG(nn.Module):
    """Stacks of 3x3 convolutions, each followed by max-pooling, and three dense layers.

    Larger images than 224 are handled fully convolutionally, as in section 3.2 of the VGG paper:
    the dense layers slide over the feature map and their scores are averaged.

    Attributes:
      stage_sizes: convolutions in each of the five stages.
      num_classes: outputs.
      width: filters of the first stage (64); doubled up to eight times as many. The dense layers
        have 64 times as many.
      batch_norm: normalise after every convolution, which then has no bias.
      dropout_rate: behind the first two dense layers; needs the random stream 'dropout'.
      virtual_batch_size, bn_momentum, bn_epsilon, bn_unbiased_variance: see `BatchNorm`.
      dtype: of the computation; parameters and the output are float32.
      remat: what the gradient keeps, where a block is the convolutions of a stage and its pooling;
        see `resnet_jax.models.remat`.
      bn_frozen: normalise by the running statistics in training too, and keep them.
      num_devices: that a batch is spread over; see `conv2d`.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int
    width: int
    batch_norm: bool
    dropout_rate: float
    virtual_batch_size: int | None
    bn_momentum: float
    bn_epsilon: float
    bn_unbiased_variance: bool
    dtype: Any
    remat: str
    bn_frozen: bool = False
    num_devices: int = 1

    @nn.compact
    def __call__(self, images, *, train: bool):
        """Class scores before the softmax.

        Args:
          images: float [N, H, W, C], normalised, H and W at least 224.
          train: drop out, normalise by batch statistics and update 'batch_stats'.

        Returns:
          float32 [N, num_classes].

        Raises:
          ConfigError: the images are smaller than 224 pixels.
        """
        if min(images.shape[1:3]) < MIN_IMAGE_SIZE:
            raise ConfigError(f'VGG needs images of at least {MIN_IMAGE_SIZE} pixels, got '
                              f'{images.shape[1]} x {images.shape[2]}: set data.image_size.')
        norm = functools.partial(
            BatchNorm, train=train and not self.bn_frozen,
            virtual_batch_size=self.virtual_batch_size, momentum=self.bn_momentum,
            epsilon=self.bn_epsilon, unbiased_variance=self.bn_unbiased_variance, dtype=self.dtype)
        conv = functools.partial(Conv, use_bias=not self.batch_norm, dtype=self.dtype,
                                 num_devices=self.num_devices)
        x = images.astype(self.dtype)
        for i in range(len(self.stage_sizes)):
            stage = functools.partial(VGG._stage, i=i, conv=conv, norm=norm)
            x = remat(stage, self.remat)(self, x)
        x = nn.Conv(self.width * 64, (WINDOW, WINDOW), padding='VALID', dtype=self.dtype,
                    kernel_init=he_normal, name='dense1')(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        x = nn.Dense(self.width * 64, dtype=self.dtype, kernel_init=he_normal, name='dense2')(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        # The scores are linear in these features: averaging either gives the same.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_normal, name='head')(x)

    def _stage(self, x, *, i: int, conv, norm):
        """float [N, H, W, C] -> [N, H // 2, W // 2, features]."""
        for j in range(self.stage_sizes[i]):
            x = conv(self.width * min(2**i, 8), 3, name=f'stage{i + 1}_conv{j + 1}')(x)
            if self.batch_norm:
                x = norm(name=f'stage{i + 1}_norm{j + 1}')(x)
            x = nn.relu(x)
        return max_pool(x, 2, 2)
