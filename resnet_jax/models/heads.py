"""The heads of Faster R-CNN: small networks on features, and on what describes a region."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of a trunk: an array [N, h, w, channels], or a tuple of one for each level.
Features = Any


class RegionProposalNetwork(nn.Module):
    """Scores and corrects every anchor: a 3x3 layer and two siblings (Faster R-CNN, section 3.1).

    All levels share the layers.

    Attributes:
      features: filters of the 3x3 layer.
      num_anchors: at each position.
      dtype: of the computation.
    """

    features: int
    num_anchors: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Features) -> tuple[jax.Array, jax.Array]:
        """The outputs for the features of a trunk, [N, h, w, channels] for each level.

        Returns:
          Scores before the sigmoid, float32 [N, A], and deltas, float32 [N, A, 4], of the anchors
          of all levels, in the order of `anchors_of`.
        """
        layer = functools.partial(nn.Conv, dtype=self.dtype,
                                  kernel_init=nn.initializers.normal(0.01))
        conv = layer(self.features, (3, 3), padding=1, name='conv')
        score = layer(self.num_anchors, (1, 1), name='score')
        delta = layer(4 * self.num_anchors, (1, 1), name='delta')

        def outputs(x):
            x = nn.relu(conv(x))
            wide = jnp.promote_types(x.dtype, jnp.float32)
            return (score(x).astype(wide).reshape(x.shape[0], -1),
                    delta(x).astype(wide).reshape(x.shape[0], -1, 4))

        levels = [outputs(x) for x in jax.tree.leaves(features)]
        scores, deltas = (jnp.concatenate(parts, 1) for parts in zip(*levels, strict=True))
        return scores, deltas


class BoxHead(nn.Module):
    """The siblings that classify a region and correct its box.

    Attributes:
      num_classes: without background.
      background_box: whether there are corrections for background too, which are not returned.
    """

    num_classes: int
    background_box: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [N, R, channels] -> scores [N, R, classes + 1], deltas [N, R, classes, 4]."""
        scores = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01),
                          name='score')(x)
        deltas = nn.Dense(4 * (self.num_classes + self.background_box),
                          kernel_init=nn.initializers.normal(0.001), name='delta')(x)
        deltas = deltas.reshape(*x.shape[:2], -1, 4)
        return scores, deltas[:, :, :self.num_classes]
