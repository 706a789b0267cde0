"""Draws of a fixed number of candidates."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from resnet_jax.regions import sampling
from resnet_jax.regions.matching import NEGATIVE, NEITHER, POSITIVE

draw = jax.jit(sampling.sample, static_argnums=(2, 3))
masks = jax.jit(sampling.masks, static_argnums=1)


@settings(max_examples=50, deadline=None)
@given(label=arrays(np.int32, 12, elements=st.sampled_from([POSITIVE, NEGATIVE, NEITHER])),
       seed=st.integers(0, 2**31 - 1))
def test_positives_come_first_negatives_fill_up_and_nothing_is_drawn_twice(label, seed):
    got = jax.tree.map(np.asarray, draw(jax.random.key(seed), label, 8, 0.25))
    positives = min(np.sum(label == POSITIVE), 2)
    negatives = min(np.sum(label == NEGATIVE), 8 - positives)
    rows = np.arange(8)
    np.testing.assert_array_equal(got.positive, rows < positives)
    np.testing.assert_array_equal(
        got.negative, (rows >= positives) & (rows < positives + negatives))
    assert (label[got.index[got.positive]] == POSITIVE).all()
    assert (label[got.index[got.negative]] == NEGATIVE).all()
    drawn = got.index[got.positive | got.negative]
    assert len(set(drawn)) == len(drawn)
    assert not got.index[~(got.positive | got.negative)].any()
    positive, negative = masks(got, 12)
    assert set(np.flatnonzero(positive)) == set(got.index[got.positive])
    assert set(np.flatnonzero(negative)) == set(got.index[got.negative])


def test_every_set_is_equally_likely():
    """All 10 pairs of 5 positives, times all 4 choices of one of 4 negatives, by chi-square."""
    label = np.int32([1, 0, 1, 0, 1, -1, 1, 0, 1, 0])
    keys = jax.random.split(jax.random.key(0), 10_000)
    got = jax.tree.map(np.asarray, draw(keys, np.broadcast_to(label, (10_000, 10)), 3, 0.7))
    assert np.all(got.positive[:, :2]) and np.all(got.negative[:, 2])
    sets = [(*pair, third) for pair in itertools.combinations((0, 2, 4, 6, 8), 2)
            for third in (1, 3, 7, 9)]
    index = np.concatenate([np.sort(got.index[:, :2]), got.index[:, 2:]], axis=1)
    counts = [np.sum(np.all(index == one, axis=1)) for one in sets]
    assert sum(counts) == 10_000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_all_candidates_are_drawn_in_order_of_30_bits_and_then_comes_padding(monkeypatch):
    bits = np.uint32([2**32 - 1, 0, 2**31, 4, 7])  # the last two differ in the lowest bits alone
    monkeypatch.setattr(jax.random, 'bits', lambda *_: bits)
    label = np.full(5, NEGATIVE, np.int32)
    got = jax.jit(lambda label: sampling.sample(jax.random.key(0), label, 8, 0.75))(label)
    np.testing.assert_array_equal(got.index, [0, 2, 3, 4, 1, 0, 0, 0])
    np.testing.assert_array_equal(got.negative, np.arange(8) < 5)
    assert not np.any(got.positive)


def test_a_draw_depends_on_its_key_alone():
    label = np.int32(np.arange(12) % 3 - 1)
    keys = jax.random.split(jax.random.key(1), 4)
    one = draw(keys[2], label, 8, 0.25)
    labels = np.stack([0 * label, label, label, 0 * label])
    batch = draw(keys, labels, 8, 0.25)
    for got, expected in zip(batch, one, strict=True):
        np.testing.assert_array_equal(got[2], expected)
    positive, negative = masks(batch, 12)
    assert set(np.flatnonzero(positive[2])) == set(np.asarray(one.index)[one.positive])
    assert set(np.flatnonzero(negative[2])) == set(np.asarray(one.index)[one.negative])
    assert not np.array_equal(batch.index[1], one.index)


def test_torchvision_draws_as_many():
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    sampler = BalancedPositiveNegativeSampler(8, 0.25)
    for positives, negatives in ((0, 12), (1, 11), (6, 6), (10, 2), (12, 0), (1, 3)):
        label = np.int32([POSITIVE] * positives + [NEGATIVE] * negatives
                         + [NEITHER] * (12 - positives - negatives))
        got = draw(jax.random.key(0), label, 8, 0.25)
        expected = [masks[0].sum() for masks in sampler([torch.tensor(label)])]
        assert [int(got.positive.sum()), int(got.negative.sum())] == expected
