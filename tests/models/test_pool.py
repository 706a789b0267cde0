"""Max-pooling, and its gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.models.pool import max_pool


def with_gradient(pool, x, weights):
    """The output, and the gradient of its weighted sum."""
    @jax.jit
    def run(x, weights):
        y, back = jax.vjp(pool, x)
        return y, back(weights)[0]

    return run(x, weights)


def check(shape, size, stride, pad, seed):
    values = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = jnp.asarray(values.integers(0, 4, shape), jnp.float64)  # many are equal

        def theirs(x):
            return nn.max_pool(x, (size, size), (stride, stride), padding=(pad, pad))

        def ours(x):
            return max_pool(x, size, stride, pad)

        weights = values.normal(size=jax.eval_shape(theirs, x).shape)
        (y, gradient), (expected, expected_gradient) = (
            with_gradient(pool, x, weights) for pool in (ours, theirs))
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(jax.jit(ours)(x), expected)  # another rule than for gradients
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_output_and_gradient_are_those_of_xla_also_where_values_are_equal(data):
    size = data.draw(st.integers(1, 4))
    stride = data.draw(st.integers(1, 4))
    pad = data.draw(st.tuples(*[st.integers(0, size - 1)] * 2))
    shape = data.draw(st.tuples(st.integers(1, 2), *[st.integers(size, 9)] * 2, st.just(2)))
    check(shape, size, stride, pad, data.draw(st.integers(0, 99)))


@pytest.mark.parametrize(('size', 'stride', 'pad'), [
    (3, 2, (1, 1)), (3, 2, (0, 1)), (2, 2, (0, 0))])
def test_so_are_those_of_the_networks_poolings_at_odd_sizes(size, stride, pad):
    check((2, 9, 8, 2), size, stride, pad, 0)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_forward_pass_for_the_gradient_gives_the_same_and_keeps_a_byte_an_output(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3), dtype)
    y, back = jax.vjp(lambda x: max_pool(x, 3, 2, (1, 1)), x)
    np.testing.assert_array_equal(y, max_pool(x, 3, 2, (1, 1)))
    assert y.dtype == back(y)[0].dtype == dtype
    kept = [leaf for leaf in jax.tree.leaves(back) if leaf.size == y.size]
    assert [leaf.dtype for leaf in kept] == [jnp.uint8]


def test_a_value_that_is_no_number_is_not_lost():
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 2].set(jnp.nan)
    for y in (max_pool(x, 2, 2), jax.vjp(lambda x: max_pool(x, 2, 2), x)[0]):
        np.testing.assert_array_equal(jnp.isnan(y[0, :, :, 0]), [[False, True], [False, False]])


def test_nothing_is_scattered_on_a_gpu_and_on_a_tpu_the_gradient_is_xlas():
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, (1, 1)).astype(jnp.float32).sum()))
    texts = {platform: grad.trace(x).lower(lowering_platforms=(platform,)).as_text()
             for platform in ('cuda', 'tpu')}
    assert {name: 'select_and_scatter' in text for name, text in texts.items()} == {
        'cuda': False, 'tpu': True}
