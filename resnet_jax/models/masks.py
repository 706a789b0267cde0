"""The mask branch of Mask R-CNN (He et al., 2017, figure 4): an object's shape within its box."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import he_normal

# Of the transposed convolution, where an output depends on one position.
_one_position = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal', batch_axis=(0, 1))


class MaskHead(nn.Module):
    """Scores every cell of a region for every class.

    Attributes:
      num_classes: without background; each has a mask of its own.
      features: filters of the hidden layers; 256 in the paper.
      convolutions: 3x3 layers in front; in the paper none after the last stage of a residual
        network ("C4"), and four on a feature pyramid.
      dtype: of the computation.
    """

    num_classes: int
    features: int
    convolutions: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, channels] -> float32 [N, 2h, 2w, classes], before the sigmoid."""
        x = x.astype(self.dtype)
        for i in range(1, self.convolutions + 1):
            x = nn.relu(nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype,
                                kernel_init=he_normal, name=f'conv{i}')(x))
        x = nn.relu(Doubled(self.features, self.dtype, name='deconv')(x))
        scores = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype,
                         kernel_init=nn.initializers.normal(0.001), name='score')(x)
        return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


class Doubled(nn.Module):
    """A transposed 2x2 convolution of stride 2, which doubles height and width.

    Attributes:
      features: filters.
      dtype: of the computation.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, channels] -> [N, 2h, 2w, features]."""
        kernel = self.param('kernel', _one_position, (2, 2, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        x, kernel, bias = (part.astype(self.dtype) for part in (x, kernel, bias))
        # Outputs do not overlap, so it is a product: each position becomes 2 x 2 of them.
        y = jnp.einsum('nhwc,ijco->nhiwjo', x, kernel) + bias
        n, h, _, w, _, _ = y.shape
        return y.reshape(n, 2 * h, 2 * w, self.features)


def of_classes(scores: jax.Array, classes: jax.Array) -> jax.Array:
    """The mask of each region's own class.

    Args:
      scores: float [N, R, M, M, classes].
      classes: int32 [N, R]; a class that there is not, such as the background, has a mask of 0.

    Returns:
      float [N, R, M, M].
    """
    # One-hot, as the gradient of a gather would be a scatter.
    own = jax.nn.one_hot(classes, scores.shape[-1], dtype=scores.dtype)
    return jnp.einsum('nrijk,nrk->nrij', scores, own, precision=jax.lax.Precision.HIGHEST)
