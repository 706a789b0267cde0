"""Batch normalisation over virtual batches."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

AXES = (1, 2, 3)  # of a group, over which its statistics are taken: images, rows, columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_normalize(x: jax.Array, gamma: jax.Array, beta: jax.Array, size: int,
                    epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each group of images by its own mean and variance.

    The gradient is written out so that only x and the statistics are stored for it; in loops,
    automatic differentiation would also store a float32 copy of the activations.

    Args:
      x: float [N, H, W, C].
      gamma, beta: float32 [C].
      size: images per group, a divisor of N.
      epsilon: added to the variance.

    Returns:
      y, like x; and the mean and variance of each group, [G, C] in float32 (float64 for float64
      images). All three are differentiable; gradients of the statistics cost nothing if unused.
    """
    return _normalize_groups(x, gamma, beta, size, epsilon)[0]


def _forward(x, gamma, beta, size, epsilon):
    return _normalize_groups(x.value, gamma.value, beta.value, size, epsilon)


def _normalize_groups(x, gamma, beta, size, epsilon):
    groups = _groups(x, size)
    with jax.named_scope('batch_statistics'):
        # One pass over the activations: the mean of the squares, less the squared mean.
        mean = groups.mean(AXES)
        var = jnp.maximum(jnp.square(groups).mean(AXES) - jnp.square(mean), 0)
    y = _normalize(groups, _spread(mean), _spread(var), gamma, beta, epsilon)
    return (y.reshape(x.shape).astype(x.dtype), mean, var), (x, gamma, mean, var)


def _backward(size, epsilon, saved, cotangents):
    """S. Ioffe and C. Szegedy, 2015, section 3, with means in place of the sums."""
    x, gamma, mean, var = saved
    dy, dmean, dvar = cotangents
    dy = jnp.zeros(x.shape, x.dtype) if isinstance(dy, SymbolicZero) else dy
    dy, groups = _groups(dy, size), _groups(x, size)
    inverse = lax.rsqrt(var + epsilon)
    with jax.named_scope('batch_statistics'):
        dbeta = dy.mean(AXES)
        # Of x as it is: XLA's CPU backend would write x - mean to memory for this sum.
        dgamma = ((dy * groups).mean(AXES) - mean * dbeta) * inverse
    dx = (dy - _spread(dbeta) - (groups - _spread(mean)) * _spread(inverse * dgamma)) * _spread(
        gamma * inverse)
    pixels = dy[0, ..., 0].size
    if not isinstance(dmean, SymbolicZero):
        dx += _spread(dmean / pixels)
    if not isinstance(dvar, SymbolicZero):
        dx += (groups - _spread(mean)) * _spread(2 / pixels * dvar)
    return (dx.reshape(x.shape).astype(x.dtype),
            pixels * dgamma.sum(0).astype(gamma.dtype), pixels * dbeta.sum(0).astype(gamma.dtype))


batch_normalize.defvjp(_forward, _backward, symbolic_zeros=True)


def _groups(x, size: int):
    """[N, H, W, C] -> float32 or float64 [G, size, H, W, C]."""
    return x.reshape(-1, size, *x.shape[1:]).astype(jnp.promote_types(x.dtype, jnp.float32))


def _spread(values):
    """[G, C] -> [G, 1, 1, 1, C]."""
    return values[:, None, None, None]


def _normalize(x, mean, var, gamma, beta, epsilon):
    return (x - mean) * (lax.rsqrt(var + epsilon) * gamma) + beta


class BatchNorm(nn.Module):
    """Batch normalisation with statistics over virtual batches of a fixed size.

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, algorithms 1 and 2. The paper trains with
    32 images per GPU on ImageNet and 64 on CIFAR-10, and every GPU normalises by its own images.
    Here the batch is split into groups of `virtual_batch_size` consecutive images, so the
    mathematics does not depend on the number of devices. If each group lies on one device, the
    batch statistics need no communication.

    All statistics are computed and stored in float32 (float64 for float64 images).

    Attributes:
      virtual_batch_size: images per group; None: the whole batch is one group, as is a batch that
        is smaller.
      momentum: share of the old running statistics that a training step keeps.
      epsilon: added to the variance.
      unbiased_variance: the running variance is scaled by n / (n - 1), as Caffe and PyTorch do and
        Flax does not; n counts the pixels of a group.
      scale_init: initialiser of gamma.
      dtype: of the output; parameters are float32.
      frozen: normalise by the running statistics in training too, and keep them.
    """

    virtual_batch_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased_variance: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float [N, H, W, C] -> dtype [N, H, W, C].

        Args:
          x: the activations.
          train: normalise by the statistics of the batch and update the running ones; otherwise
            normalise by the running ones.

        Raises:
          ValueError: N is larger than the virtual batch, but not a multiple of it, in training.
        """
        channels = x.shape[-1:]
        gamma = self.param('scale', self.scale_init, channels, jnp.float32)
        beta = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        if not train or self.frozen:
            return _normalize(x, running_mean.value, running_var.value, gamma, beta,
                              self.epsilon).astype(self.dtype)

        size = min(self.virtual_batch_size or len(x), len(x))
        if len(x) % size:
            raise ValueError(
                f'the batch has {len(x)} images, which must be a multiple of the virtual batch '
                f'size, {size}.')
        y, mean, var = batch_normalize(x, gamma, beta, size, self.epsilon)
        with jax.named_scope('running_statistics'):
            n = size * x.shape[1] * x.shape[2]
            correction = n / max(n - 1, 1) if self.unbiased_variance else 1.0
            for running, value in ((running_mean, mean), (running_var, var * correction)):
                average = lax.stop_gradient(value).mean(0)
                running.value = self.momentum * running.value + (1 - self.momentum) * average
        return y.astype(self.dtype)
