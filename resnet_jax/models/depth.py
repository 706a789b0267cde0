"""Stochastic depth: in training, the branch of a block is left out at random, image by image."""

import flax.linen as nn
import jax
import jax.numpy as jnp

STREAM = 'stochastic_depth'  # what the random numbers are called in `rngs`


def rates(last: float, num_blocks: int) -> tuple[float, ...] | None:
    """The rates of all blocks, which increase evenly from 0 to that of the last; None: all are 0.

    G. Huang et al., "Deep Networks with Stochastic Depth", 2016, section 3, where the first block
    already has the rate last / num_blocks; as in timm, it is never left out here.
    """
    return tuple(last * i / max(num_blocks - 1, 1) for i in range(num_blocks)) if last else None


def drop_branch(block: nn.Module, branch: jax.Array, rate: jax.Array | float | None, *,
                train: bool) -> jax.Array:
    """Sets the branch to 0 in images drawn at random; the others are scaled by 1 / (1 - rate).

    Args:
      block: draws from its stream 'stochastic_depth'.
      branch: float [N, H, W, C].
      rate: the probability, float or float32 []; None: the branch stays as it is.
      train: without it, it stays as well.
    """
    if rate is None or not train:
        return branch
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(block.make_rng(STREAM), keep, (len(branch), 1, 1, 1))
    return branch * jnp.where(kept, 1 / keep, 0).astype(branch.dtype)
