"""Batch normalisation over virtual batches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation whose statistics are taken over virtual batches of a fixed size.

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, algorithms 1 and 2. The paper trains with
    32 images a GPU on ImageNet and 64 on CIFAR-10, and every GPU normalises by its own images. Here
    the batch is cut into groups of `virtual_batch_size` consecutive images, so that the mathematics
    does not depend on how many devices there are. Where each group lies on one device, the batch
    statistics need no communication.

    All statistics are computed and kept in float32 (in float64 for float64 images).

    Attributes:
      train: normalise by the statistics of the batch and update the running ones; otherwise
        normalise by the running ones.
      virtual_batch_size: images a group; None: the whole batch is one group.
      momentum: share of the old running statistics that a training step keeps.
      epsilon: added to the variance.
      unbiased_variance: the running variance is scaled by n / (n - 1), as Caffe and PyTorch do and
        Flax does not; n counts the pixels of a group.
      scale_init: initialiser of gamma.
      dtype: of the output; parameters are float32.
    """

    train: bool
    virtual_batch_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased_variance: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """float [N, H, W, C] -> dtype [N, H, W, C].

        Raises:
          ValueError: N is not a multiple of the virtual batch size, in training.
        """
        channels = x.shape[-1:]
        gamma = self.param('scale', self.scale_init, channels, jnp.float32)
        beta = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        if not self.train:
            return _normalize(x, running_mean.value, running_var.value, gamma, beta,
                              self.epsilon).astype(self.dtype)

        size = self.virtual_batch_size or len(x)
        if len(x) % size:
            raise ValueError(
                f'a batch of {len(x)} images is no multiple of the virtual batch of {size}.')
        groups = x.reshape(-1, size, *x.shape[1:])  # [G, n, H, W, C]
        with jax.named_scope('batch_statistics'):
            # One pass over the activations: the mean of the squares, less the squared mean.
            pixels = groups.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = pixels.mean((1, 2, 3), keepdims=True)
            var = jnp.square(pixels).mean((1, 2, 3), keepdims=True) - jnp.square(mean)
            var = jnp.maximum(var, 0)
        with jax.named_scope('running_statistics'):
            n = groups[0, ..., 0].size
            correction = n / max(n - 1, 1) if self.unbiased_variance else 1.0
            for running, value in ((running_mean, mean), (running_var, var * correction)):
                average = jax.lax.stop_gradient(value).mean((0, 1, 2, 3))
                running.value = self.momentum * running.value + (1 - self.momentum) * average
        y = _normalize(groups, mean, var, gamma, beta, self.epsilon)
        return y.reshape(x.shape).astype(self.dtype)


def _normalize(x, mean, var, gamma, beta, epsilon):
    return (x - mean) * (jax.lax.rsqrt(var + epsilon) * gamma) + beta
