"""Batch normalisation over virtual batches, against formulas in numpy and against Flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.models.norm import BatchNorm, batch_normalize

EPSILON = 1e-5


def variables(channels, rng):
    positive = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    any_sign = rng.normal(size=(2, channels)).astype(np.float32)
    return {'params': {'scale': positive[0], 'bias': any_sign[0]},
            'batch_stats': {'mean': any_sign[1], 'var': positive[1]}}


@functools.partial(jax.jit, static_argnums=0)
def apply(norm, variables, x):
    return norm.apply(variables, x, train=True, mutable=['batch_stats'])


@settings(max_examples=12, deadline=None)
@given(groups=st.integers(1, 4), size=st.integers(1, 5), pixels=st.integers(2, 5),
       channels=st.integers(1, 4), unbiased=st.booleans(), momentum=st.floats(0, 1),
       offset=st.sampled_from([0.0, 30.0]))
def test_every_group_is_normalised_by_itself(
        groups, size, pixels, channels, unbiased, momentum, offset):
    rng = np.random.default_rng(groups * 100 + size)
    x = rng.normal(offset, 3, (groups * size, pixels, pixels, channels)).astype(np.float32)
    start = variables(channels, rng)
    norm = BatchNorm(virtual_batch_size=size, momentum=momentum,
                     unbiased_variance=unbiased)
    y, updates = apply(norm, start, x)

    grouped = x.astype(np.float64).reshape(groups, size, pixels, pixels, channels)
    mean = grouped.mean((1, 2, 3), keepdims=True)
    var = grouped.var((1, 2, 3), keepdims=True)
    gamma, beta = start['params']['scale'], start['params']['bias']
    expected = (grouped - mean) / np.sqrt(var + EPSILON) * gamma + beta
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=2e-3, atol=2e-3)

    n = size * pixels * pixels
    stats = {'mean': mean, 'var': var * n / (n - 1) if unbiased else var}
    for name, value in stats.items():
        old = start['batch_stats'][name]
        np.testing.assert_allclose(
            updates['batch_stats'][name],
            momentum * old + (1 - momentum) * value.mean((0, 1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_the_whole_batch_equals_flax():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4, 4, 3)).astype(np.float32)
    start = variables(3, rng)
    ours = BatchNorm(unbiased_variance=False)
    theirs = nn.BatchNorm(momentum=0.9, epsilon=EPSILON)

    def loss(norm, params, x):
        mode = {'train': True} if norm is ours else {'use_running_average': False}
        y, updates = norm.apply({**start, 'params': params}, x, mutable=['batch_stats'], **mode)
        return jnp.sin(y).sum(), (y, updates)

    gradient = jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0)
    for got, expected in zip(
            jax.tree.leaves(gradient(ours, start['params'], x)),
            jax.tree.leaves(gradient(theirs, start['params'], x)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_groups_equals_autodiff_of_the_definition_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(2, 3, (6, 4, 5, 3)))
        gamma, beta = jnp.asarray(rng.normal(size=(2, 3)))

        def definition(x, gamma, beta):
            groups = x.reshape(3, 2, 4, 5, 3)
            mean, var = (f(groups, (1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
            return ((groups - mean) / jnp.sqrt(var + EPSILON) * gamma + beta).reshape(x.shape)

        def ours(x, gamma, beta):
            return batch_normalize(x, gamma, beta, 2, EPSILON)[0]

        got, expected = (jax.jit(jax.grad(
            lambda *args, f=f: jnp.sin(f(*args)).sum(), (0, 1, 2)))(x, gamma, beta)
            for f in (ours, definition))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_the_gradient_keeps_the_activations_as_they_came_and_no_float32_copy():
    x = jnp.zeros((4, 8, 8, 2), jnp.bfloat16)
    kept = jax.eval_shape(lambda x: jax.vjp(
        lambda x: batch_normalize(x, jnp.ones(2), jnp.zeros(2), 2, EPSILON), x)[1], x)
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, jnp.bfloat16)]


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2, 2, 3)).astype(np.float32)
    start = variables(3, rng)
    y, updates = BatchNorm(virtual_batch_size=4).apply(
        start, x, train=False, mutable=['batch_stats'])
    stats, params = start['batch_stats'], start['params']
    expected = ((x - stats['mean']) / np.sqrt(stats['var'] + EPSILON) * params['scale']
                + params['bias'])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for name in stats:
        np.testing.assert_array_equal(updates['batch_stats'][name], stats[name])


def test_statistics_are_float32_when_the_computation_is_bfloat16():
    x = jnp.full((4, 8, 8, 2), 3.0, jnp.bfloat16) + jnp.arange(2, dtype=jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16, momentum=0.0)
    y, updates = norm.init_with_output(jax.random.key(0), x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype('float32')}
    np.testing.assert_array_equal(updates['batch_stats']['mean'], [3.0, 4.0])


def test_a_batch_that_the_virtual_batch_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match='6 images, which must be a multiple of'):
        BatchNorm(virtual_batch_size=4).init(
            jax.random.key(0), jnp.zeros((6, 2, 2, 1)), train=True)


def test_a_batch_smaller_than_the_virtual_batch_is_one_group():
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    outputs = []
    for size in (32, None):
        norm = BatchNorm(virtual_batch_size=size)
        variables = norm.init(jax.random.key(0), x, train=False)
        outputs.append(jax.tree.leaves(apply(norm, variables, x)))
    for small, whole in zip(*outputs, strict=True):
        np.testing.assert_array_equal(small, whole)
    # Over the four images: each channel has mean 0 and variance 1.
    np.testing.assert_allclose(outputs[0][0].mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(outputs[0][0].var((0, 1, 2)), 1, atol=1e-3)


def test_a_loss_on_the_statistics_of_a_batch_has_their_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(2, 3, (6, 4, 5, 3)))
        gamma, beta = jnp.asarray(rng.normal(size=(2, 3)))

        def definition(x):
            groups = x.reshape(3, 2, 4, 5, 3)
            return groups.mean((1, 2, 3)), groups.var((1, 2, 3))

        def ours(x):
            return batch_normalize(x, gamma, beta, 2, EPSILON)[1:]

        def loss(statistics):
            return lambda x: sum((k * jnp.sin(value)).sum() for k, value in enumerate(
                statistics(x), 1))

        got, expected = (jax.jit(jax.grad(loss(statistics)))(x)
                         for statistics in (ours, definition))
        assert jnp.abs(expected).max() > 1e-3
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
