"""Convolutions without bias, padded explicitly by half the kernel, He-initialised."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

CONV_OUTPUT = 'conv'  # the name by which `resnet_jax.models.remat` keeps the outputs
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# Gaussian with variance 2 / fan-in: K. He et al., "Delving Deep into Rectifiers", 2015, eq. 10.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x, kernel, stride: int):
    """Convolution of NHWC images with an HWIO kernel of k x k.

    k // 2 zeros are padded above and left, and the rest of k - 1 below and right: for an odd k, as
    many on every side.

    XLA's CPU backend runs the gradient of a convolution inside any loop (scanned blocks, the parts
    of an accumulated batch, several steps a call) on a naive path: four scanned 3x3 layers of 32
    filters on 128 images of 16x16 took 3973 ms, and take 71 ms with the gradients below. So on CPU
    they are written as ordinary convolutions and matrix products. Elsewhere they are XLA's own.
    """
    return _convolve(x, kernel, stride)


def _convolve(x, kernel, stride: int = 1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [_padding(len(kernel))] * 2, dimension_numbers=DIMENSIONS)


def _padding(k: int) -> tuple[int, int]:
    return k // 2, (k - 1) // 2


def _forward(x, kernel, stride: int):
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved, dy):
    x, kernel = saved

    def own(x, kernel, dy):
        return (_input_gradient(dy, kernel, x.shape, stride),
                _kernel_gradient(x, dy, kernel.shape[0], stride))

    def xla(x, kernel, dy):
        return jax.vjp(lambda x, kernel: _convolve(x, kernel, stride), x, kernel)[1](dy)

    return lax.platform_dependent(x, kernel, dy, cpu=own, default=xla)


conv2d.defvjp(_forward, _backward)


def _input_gradient(dy, kernel, shape: tuple[int, ...], stride: int):
    """dy, spread over the input's pixels, convolved with the kernel turned around."""
    k = len(kernel)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    zeros = [(0, size - (out - 1) * stride - 1, stride - 1)
              for size, out in zip(shape[1:3], dy.shape[1:3], strict=True)]
    def spread(y):
        return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *zeros, (0, 0, 0)))

    if k == 1:
        return spread(_convolve(dy, turned))  # a 1x1 kernel does not mix the zeros in
    return lax.conv_general_dilated(spread(dy), turned, (1, 1), [_padding(k)[::-1]] * 2,
                                    dimension_numbers=DIMENSIONS)


def _kernel_gradient(x, dy, k: int, stride: int):
    """The sum over images and pixels of input patches times dy: [k, k, C, features]."""
    if k > 1 and stride == 1:
        # The channels take the place of the images, and dy that of the kernel.
        return lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), [_padding(k)] * 2,
            dimension_numbers=DIMENSIONS).transpose(1, 2, 0, 3)
    n, h, w, features = dy.shape
    channels = x.shape[-1]
    padded = jnp.pad(x, ((0, 0), _padding(k), _padding(k), (0, 0)))

    def tap(i, j):
        end = (n, i + (h - 1) * stride + 1, j + (w - 1) * stride + 1, channels)
        pixels = lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))
        return jnp.dot(pixels.reshape(-1, channels).T, dy.reshape(-1, features),
                       preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))

    taps = jnp.stack([tap(i, j) for i in range(k) for j in range(k)])
    return taps.reshape(k, k, channels, features).astype(x.dtype)


def space_to_depth_conv2d(x, kernel):
    """`conv2d` with stride 2, computed on blocks of 2x2 pixels that lie in the channels.

    A matrix unit of 128 rows is nearly idle on the 3 channels of an image. On [N, H / 2, W / 2, 4C]
    the 7x7 convolution of stride 2 is one of 4x4 and stride 1: the kernel is given a row and a
    column of zeros above and left, and cut into blocks of 2x2 taps. Sums run over the same products
    in another order. (From MLPerf's ResNet-50 for TPUs. Its effect there: not run.)

    Args:
      x: [N, H, W, C]; an odd H or W is filled up with zeros, which belong to the padding anyway.
      kernel: [k, k, C, features], k one of 3, 7, 11, ….
    """
    k, _, channels, features = kernel.shape
    n, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(n, -(-h // 2), 2, -(-w // 2), 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], 4 * channels)
    blocks = (k + 1) // 2
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, 2, blocks, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return conv2d(x, kernel.reshape(blocks, blocks, 4 * channels, features), 1)


class Conv(nn.Module):
    """A k x k convolution of NHWC images with HWIO kernels.

    k // 2 zeros are padded on every side, as in the paper and in PyTorch. 'SAME' would pad unevenly
    before a stride, and weights would not transfer.

    Attributes:
      features: output channels.
      kernel_size: k, odd.
      stride: in both directions.
      space_to_depth: see `space_to_depth_conv2d`; of stride 2 only, and of the same kernel.
      use_bias: whether a bias is added; never in front of a batch normalisation.
      dtype: of the computation and the output; parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    space_to_depth: bool = False
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """float [N, H, W, C] -> dtype [N, ceil(H / stride), ceil(W / stride), features]."""
        k, channels = self.kernel_size, x.shape[-1]
        kernel = self.param('kernel', he_normal, (k, k, channels, self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.space_to_depth:
            y = space_to_depth_conv2d(x, kernel)
        else:
            y = conv2d(x, kernel, self.stride)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(self.dtype)
        return checkpoint_name(y, CONV_OUTPUT)
