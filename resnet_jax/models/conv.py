"""Convolutions without bias, padded explicitly by half the kernel, He-initialised."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Gaussian with variance 2 / fan-in: K. He et al., "Delving Deep into Rectifiers", 2015, eq. 10.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def conv2d(x, kernel, stride: int):
    """Convolution of NHWC images with an HWIO kernel, k // 2 zeros padded on every side."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(k // 2, k // 2) for k in kernel.shape[:2]],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class Conv(nn.Module):
    """A k x k convolution of NHWC images with HWIO kernels.

    k // 2 zeros are padded on every side, as in the paper and in PyTorch. 'SAME' would pad unevenly
    before a stride, and weights would not transfer.

    Attributes:
      features: output channels.
      kernel_size: k, odd.
      stride: in both directions.
      use_bias: whether a bias is added; never in front of a batch normalisation.
      dtype: of the computation and the output; parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """float [N, H, W, C] -> dtype [N, ceil(H / stride), ceil(W / stride), features]."""
        k, channels = self.kernel_size, x.shape[-1]
        kernel = self.param('kernel', he_normal, (k, k, channels, self.features), jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(self.dtype)
        return y
