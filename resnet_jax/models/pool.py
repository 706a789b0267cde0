"""Max-pooling with a fast gradient, and average pooling."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, size: int, stride: int, pad: tuple[int, int] = (0, 0)) -> jax.Array:
    """Max-pooling over windows of size x size pixels.

    The gradient goes to the first maximum of a window in row-major order, as in XLA and PyTorch. On
    CPU and GPU it is computed from a stored uint8 index, which is faster and needs less memory
    traffic than XLA's own; TPUs have an instruction for XLA's. docs/performance.md has figures.

    Args:
      x: float [N, H, W, C].
      size: height and width of a window.
      stride: distance between windows, in both directions.
      pad: pixels of -infinity before and after both the height and the width.

    Returns:
      [N, (H + sum(pad) - size) // stride + 1, …, C], as x.
    """
    return lax.platform_dependent(
        x, tpu=lambda x: _xla(x, size, stride, pad),
        default=lambda x: _own(x, size, stride, pad, x.shape[1:3]))


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of every 2 x 2 pixels, and of what is left of them at an odd end.

    Args:
      x: float [N, H, W, C].

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C], as x.
    """
    n, height, width, channels = x.shape
    # The mean of a pixel and its copy is the pixel.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), 'edge')
    return x.reshape(n, x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels).mean((2, 4))


def _xla(x, size: int, stride: int, pad: tuple[int, int]):
    return nn.max_pool(x, (size, size), (stride, stride), padding=(pad, pad))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _own(x, size: int, stride: int, pad: tuple[int, int], lengths: tuple[int, int]):
    """`_xla` with its own gradient, which needs only the `lengths` of x: height and width."""
    del lengths
    return _xla(x, size, stride, pad)


def _forward(x, size, stride, pad, lengths):
    """Stores the index of the maximum among the size * size pixels of each window as uint8."""
    del lengths
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*pad, 0), (*pad, 0), (0, 0, 0)))
    ends = [(length - size) // stride * stride + 1 for length in padded.shape[1:3]]
    pixels = [padded[:, i:i + ends[0]:stride, j:j + ends[1]:stride] for i, j in _window(size)]
    y, largest = pixels[0], jnp.zeros(pixels[0].shape, jnp.uint8)
    for k, pixel in enumerate(pixels[1:], 1):
        largest = jnp.where(pixel > y, jnp.uint8(k), largest)
        y = jnp.maximum(y, pixel)
    return y, largest


def _backward(size, stride, pad, lengths, largest, dy):
    """Pixels stride * o + c of the padded image lie in the windows o, o - 1, …: a sum for each c.

    The sums of all c are then interleaved.
    """
    further = (size - 1) // stride  # windows
    dtype = jnp.promote_types(dy.dtype, jnp.float32)

    def gradient(row, column):
        total = jnp.zeros((len(dy), *(length + further for length in dy.shape[1:3]), dy.shape[3]),
                          dtype)
        for k, (i, j) in enumerate(_window(size)):
            if i % stride == row and j % stride == column:
                part = jnp.where(largest == k, dy, 0).astype(dtype)
                shifts = [(shift, further - shift, 0) for shift in (i // stride, j // stride)]
                total += lax.pad(part, jnp.zeros((), dtype), ((0, 0, 0), *shifts, (0, 0, 0)))
        return total.astype(dy.dtype)

    dx = jnp.stack([jnp.stack([gradient(row, column) for column in range(stride)], 3)
                    for row in range(stride)], 2)
    n, rows, _, columns, _, channels = dx.shape
    dx = dx.reshape(n, rows * stride, columns * stride, channels)
    rest = [(-pad[0], pad[0] + length - now, 0)
            for length, now in zip(lengths, dx.shape[1:3], strict=True)]
    return (lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *rest, (0, 0, 0))),)


_own.defvjp(_forward, _backward)


def _window(size: int):
    """The pixels of a window, row by row."""
    return itertools.product(range(size), repeat=2)
