"""Metrics: ranks, masks, and sums that do not depend on the batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.tasks.classification.metrics import (
    Metrics,
    cross_entropy,
    heavier_label,
    label_ranks,
)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (3, 9), (20, 2), (20, 7)]))
def test_ranks_are_those_of_a_stable_sort(seed, shape):
    n, classes = shape  # few, as each is compiled for
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (n, classes)).astype(np.float32)  # with many ties
    labels = rng.integers(0, classes, n)
    order = np.argsort(-logits, axis=1, kind='stable')
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    np.testing.assert_array_equal(jax.jit(label_ranks)(logits, labels), expected)
    correct = logits.argmax(1) == labels
    np.testing.assert_array_equal(np.asarray(expected) == 0, correct)


def test_a_network_that_is_not_a_number_is_wrong():
    logits = jnp.full((3, 10), jnp.nan)
    assert (label_ranks(logits, jnp.array([0, 5, 9])) >= 1).all()


@jax.jit
def measured(scores, batch):
    return Metrics.of_batch(scores, batch, cross_entropy(scores, batch['label'], 0.0))


@settings(max_examples=8)
@given(st.integers(1, 60), st.sampled_from([1, 7, 16]))
def test_every_image_counts_once_whatever_the_batch_size(n, batch_size):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(n, 8)).astype(np.float32)
    labels = rng.integers(0, 8, n)
    parts = []
    for start in range(0, n, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), n - 1)
        mask = (np.arange(start, start + batch_size) < n).astype(np.float32)
        parts.append(measured(logits[index], {'label': labels[index], 'mask': mask}))
    report = functools.reduce(jax.jit(Metrics.merge), parts).report()
    assert report['count'] == n
    assert report['top1_error'] == 100 * float((logits.argmax(1) != labels).mean())
    own = logits[np.arange(n), labels]
    assert report['top5_error'] == 100 * float(((logits > own[:, None]).sum(1) >= 5).mean())
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(n), labels]
    np.testing.assert_allclose(report['loss'], losses.mean(), rtol=1e-5)


def test_a_mixed_image_is_to_be_recognised_by_its_heavier_label():
    scores = 10 * jnp.eye(4)[jnp.array([0, 1, 2, 3])]  # sees class i in image i
    batch = {'label': jnp.array([0, 0, 3, 3]), 'mix_label': jnp.array([3, 1, 2, 0]),
             'mix_weight': jnp.array([0.9, 0.2, 0.499, 0.5]), 'mask': jnp.ones(4)}
    assert heavier_label(batch).tolist() == [0, 1, 2, 3]
    losses = cross_entropy(scores, batch['label'], 0.0)
    assert Metrics.of_batch(scores, batch, losses).report()['top1_error'] == 0
    del batch['mix_label'], batch['mix_weight']
    assert Metrics.of_batch(scores, batch, losses).report()['top1_error'] == 50


def test_label_smoothing_spreads_its_share_over_all_classes():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    loss = cross_entropy(logits, jnp.array([0]), 0.3)
    np.testing.assert_allclose(
        loss, [-(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1))], rtol=1e-6)
