"""Draws a fixed number of candidates for training."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.regions.matching import NEGATIVE, POSITIVE


class Sample(NamedTuple):
    """Candidates that were drawn: positives first, then negatives, then padding.

    Attributes:
      index: int32 [..., number], 0 for padding.
      positive: bool [..., number].
      negative: bool [..., number]; neither for padding.
    """

    index: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name
    positive: jax.Array
    negative: jax.Array


def sample(key: jax.Array, label: jax.Array, number: int, fraction: float) -> Sample:
    """Draws positives without replacement, and fills up with negatives.

    Every set of the same size is equally likely, as with PyTorch's `randperm`. The numbers that
    order the candidates have 30 random bits; where two are equal at the edge of the sample, which
    happens once in 17,000 times among 63,000 candidates, the one with the lower index is drawn.

    Args:
      key: random keys [...], one for each image.
      label: int32 [..., A], from `matching.match`.
      number: of candidates to draw.
      fraction: of them that may be positive, at most: int(number * fraction). If there are fewer
        positives there are more negatives, and not the other way round.

    Returns:
      Sample.
    """
    one = functools.partial(_sample, number=number, most_positive=int(number * fraction))
    for _ in label.shape[:-1]:
        one = jax.vmap(one)
    return one(key, label)


def masks(drawn: Sample, size: int) -> tuple[jax.Array, jax.Array]:
    """A sample as masks of all candidates.

    A loss over all candidates that is weighted with these needs no gather of network outputs, whose
    gradient would be a scatter.

    Args:
      drawn: from `sample`.
      size: number of candidates, A.

    Returns:
      positive: bool [..., size].
      negative: bool [..., size].
    """
    def one(index, chosen):  # every index at most once, so the order of writing does not matter
        index = jnp.where(chosen, index, size)
        return jnp.zeros(size, bool).at[index].set(True, mode='drop')

    for _ in drawn.index.shape[:-1]:
        one = jax.vmap(one)
    return one(drawn.index, drawn.positive), one(drawn.index, drawn.negative)


def _sample(key, label, number: int, most_positive: int) -> Sample:
    # Integers as the bits of positive floats, which have the same order, because top_k is much
    # faster with floats on CPU. jax.random.uniform has 23 bits, of which two are equal more often.
    bits = jax.random.bits(key, label.shape, jnp.uint32)
    order = lax.bitcast_convert_type((bits >> 2) + jnp.uint32(1 << 23), jnp.float32)

    def first(group, most):
        _, index = lax.top_k(jnp.where(label == group, order, -1), min(most, label.size))
        return jnp.pad(index, (0, number - index.size))

    def count(group):
        return jnp.sum(label == group, dtype=jnp.int32)

    row = lax.iota(jnp.int32, number)
    positives = jnp.minimum(count(POSITIVE), most_positive)
    positive = row < positives
    negative = ~positive & (row < positives + count(NEGATIVE))
    index = jnp.where(positive, first(POSITIVE, most_positive),
                      jnp.roll(first(NEGATIVE, number), positives))
    return Sample(jnp.where(positive | negative, index, 0), positive, negative)
