"""Convolutions with explicit padding, He initialisation and fast gradients on CPU and TPU."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

CONV_OUTPUT = 'conv'  # name of the outputs, for `resnet_jax.models.remat`
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
CACHE_BYTES = 2**20  # size of a core's own (second-level) cache

# Gaussian with variance 2 / fan-in: K. He et al., "Delving Deep into Rectifiers", 2015, eq. 10.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, num_devices: int = 1, groups: int = 1,
           dilation: int = 1) -> jax.Array:
    """Convolution of NHWC images with an HWIO kernel of k x k, computed in the type of the images.

    The input is padded with k // 2 zeros above and left, and k - 1 - k // 2 below and right, which
    is symmetric for odd k. With a dilation, k stands for the extent (k - 1) * dilation + 1.

    On CPU the gradients are written as ordinary convolutions and matrix products, because XLA's own
    are slow inside loops such as scanned blocks; see docs/performance.md. With bfloat16 images, the
    gradient of a float32 kernel is computed and summed over devices in float32 on CPU and TPU. On
    GPU, and of convolutions with groups or a dilation, the gradients are XLA's own.

    Without groups and dilation only reverse-mode differentiation is supported, to any order, so JAX
    rejects `jax.jvp`, `jax.jacfwd` and `jax.hessian`.

    Args:
      x: float [N, H, W, C].
      kernel: float [k, k, C / groups, features].
      stride: in both directions.
      num_devices: number of devices that the batch is sharded over. On a single CPU device the
        kernel's gradient is computed a few images at a time, see `_correlate`.
      groups: the channels, and the features, are divided into this many groups, and each group of
        features sees one group of channels.
      dilation: distance in pixels between neighbouring taps of the kernel.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), features], as x.
    """
    if groups == dilation == 1:
        return _conv2d(x, kernel, stride, num_devices)
    return _convolve(x, kernel, stride, groups, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, stride: int, num_devices: int):
    del num_devices
    return _convolve(x, kernel, stride)


def _convolve(x, kernel, stride: int = 1, groups: int = 1, dilation: int = 1):
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride),
        [_padding((len(kernel) - 1) * dilation + 1)] * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSIONS, feature_group_count=groups)


def _padding(k: int) -> tuple[int, int]:
    return k // 2, (k - 1) // 2


def _forward(x, kernel, stride: int, num_devices: int):
    del num_devices
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, num_devices: int, saved, dy):
    x, kernel = saved
    k = len(kernel)

    def cpu(x, kernel, dy):
        gradient = (_pixel_product(x, dy, stride) if k == 1 else
                    _correlate(x, dy, k, stride, _parts(x, dy, num_devices)))
        return (_input_gradient(dy, kernel.astype(x.dtype), x.shape, stride),
                gradient.astype(kernel.dtype))

    def tpu(x, kernel, dy):
        return (jax.vjp(lambda x: _convolve(x, kernel, stride), x)[1](dy)[0],
                _correlate(x, dy, k, stride, 1).astype(kernel.dtype))

    def xla(x, kernel, dy):
        return jax.vjp(lambda x, kernel: _convolve(x, kernel, stride), x, kernel)[1](dy)

    return lax.platform_dependent(x, kernel, dy, cpu=cpu, tpu=tpu, default=xla)


_conv2d.defvjp(_forward, _backward)


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


def _pixel_product(x, dy, stride: int):
    """The kernel's gradient for k = 1, one matrix product: [1, 1, C, features] as `_sum`."""
    pixels = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
    return jnp.dot(pixels.T, dy.reshape(-1, dy.shape[-1]), preferred_element_type=_sum(x))[
        None, None]


def _correlate(x, dy, k: int, stride: int, parts: int):
    """The kernel's gradient: the sum over images and pixels of input patches times dy.

    The batch is processed in `parts`, so that on CPU each part fits in a core's own cache.

    Returns:
      [k, k, C, features] as `_sum`.
    """
    images, before = len(x) // parts, k // 2
    after = [(out - 1) * stride + k - size - before
             for size, out in zip(x.shape[1:3], dy.shape[1:3], strict=True)]

    def convolve(x, dy):
        # The channels take the place of the images, and dy that of the kernel.
        return lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1),
            [(before, end) for end in after], rhs_dilation=(stride, stride),
            dimension_numbers=DIMENSIONS, preferred_element_type=_sum(x))

    def add(i, total):
        return total + convolve(*(
            lax.dynamic_slice_in_dim(y, i * images, images) for y in (x, dy)))

    zeros = jnp.zeros((x.shape[-1], k, k, dy.shape[-1]), _sum(x))
    total = lax.fori_loop(0, parts, add, zeros) if parts > 1 else convolve(x, dy)
    return total.transpose(1, 2, 0, 3)


def _sum(x):
    """The dtype of sums: float32, or float64 for float64 images."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _parts(x, dy, num_devices: int) -> int:
    """The number of parts of a batch for which a part of x and dy fits into `CACHE_BYTES`.

    It is 1 on several devices, because every part would need its own sum over all of them.
    """
    if num_devices > 1:
        return 1
    fewest = math.ceil((x.nbytes + dy.nbytes) / CACHE_BYTES)
    return next((n for n in range(fewest, len(x)) if len(x) % n == 0), len(x))


class Conv(nn.Module):
    """A k x k convolution of NHWC images with HWIO kernels.

    The input is padded with k // 2 zeros on every side, as in the paper and in PyTorch, or with
    k // 2 * dilation. ('SAME' pads unevenly for strides above 1, so weights of other frameworks
    would not transfer.)

    Attributes:
      features: output channels.
      kernel_size: k, odd.
      stride: in both directions.
      use_bias: whether a bias is added; never in front of a batch normalisation.
      dtype: of the computation and the output; parameters are float32.
      num_devices, groups, dilation: see `conv2d`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    num_devices: int = 1
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [N, H, W, C] -> dtype [N, ceil(H / stride), ceil(W / stride), features].

        Raises:
          ValueError: the groups do not divide C and the features.
        """
        k, (channels, rest) = self.kernel_size, divmod(x.shape[-1], self.groups)
        if rest or self.features % self.groups:
            raise ValueError(f'{self.groups} groups must divide the {x.shape[-1]} channels and the '
                             f'{self.features} features of a convolution.')
        kernel = self.param('kernel', he_normal, (k, k, channels, self.features), jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel, self.stride, self.num_devices, self.groups,
                   self.dilation)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(self.dtype)
        return checkpoint_name(y, CONV_OUTPUT)
