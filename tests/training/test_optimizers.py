"""Optimizers and schedules, against the formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.config import fields
from resnet_jax.training import optimizers, schedules
from resnet_jax.xla import flags as xla_flags

PARAMS = {
    'block1': {'kernel': jnp.array([[1.0, -2.0]]), 'bias': jnp.array([0.5])},
    'blocks': {'kernel': jnp.array([[[3.0, 4.0]], [[0.3, -0.4]]]),
             'scale': jnp.array([[1.0], [2.0]])},
}


def config(**changed):
    c = config_lib.default()
    c.num_steps = 100
    for name, value in changed.items():
        section, field = name.split('__')
        c[section][field] = value
    return c


def run(c, gradients, rates, params=PARAMS):
    config_lib.check_ranges(config_lib.given(c))
    optimizer = optimizers.create(c)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient, rate in zip(gradients, rates, strict=True):
        updates, state = update(gradient, state, params, learning_rate=jnp.float32(rate))
        params = jax.tree.map(jnp.add, params, updates)
    return params


def gradients(n):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
            for _ in range(n)]


@pytest.mark.parametrize('form', ['paper', 'pytorch'])
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_is_that_of_the_paper_or_of_pytorch(form, nesterov):
    c = config(optimizer__momentum_form=form, optimizer__weight_decay=0.1,
               optimizer__nesterov=nesterov)
    rates = [0.1, 0.1, 0.01, 0.01]  # the forms differ only after a change
    got = run(c, gradients(4), rates)

    def expected(param, *grads):
        w, v = np.asarray(param, np.float64), 0.0
        for gradient, rate in zip(grads, rates, strict=True):
            g = np.asarray(gradient) + 0.1 * w
            if form == 'paper':
                v = 0.9 * v + rate * g
                w = w - (0.9 * v + rate * g if nesterov else v)
            else:
                v = 0.9 * v + g
                w = w - rate * (0.9 * v + g if nesterov else v)
        return w

    for a, b in zip(jax.tree.leaves(got),
                    jax.tree.leaves(jax.tree.map(expected, PARAMS, *gradients(4))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_decay_may_leave_out_batch_normalisation_and_biases(name):
    zeros = [jax.tree.map(jnp.zeros_like, PARAMS)]
    everything = run(config(optimizer__name=name), zeros, [0.1])
    weights = run(config(optimizer__name=name, optimizer__decay_bn_and_bias=False), zeros, [0.1])
    shrunk = 1 - 0.1 * 1e-4
    np.testing.assert_allclose(everything['block1']['bias'], 0.5 * shrunk, rtol=1e-7)
    np.testing.assert_array_equal(weights['block1']['bias'], 0.5)
    np.testing.assert_array_equal(weights['blocks']['scale'], PARAMS['blocks']['scale'])
    np.testing.assert_allclose(
        weights['blocks']['kernel'], PARAMS['blocks']['kernel'] * shrunk, rtol=1e-7)


def test_clipping_bounds_the_global_norm():
    c = config(optimizer__clip_norm=0.5, optimizer__weight_decay=0.0, optimizer__momentum=0.0)
    grads = gradients(1)
    step = jax.tree.map(jnp.subtract, PARAMS, run(c, grads, [1.0]))
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(step)))
    np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


def lars(w, grads, rates, decay, momentum, coefficient=0.001):
    """You et al., 2017, algorithm 1, for one layer."""
    w, v = np.float64(w), 0.0
    for g, rate in zip(np.float64(grads), rates, strict=True):
        norm_w, norm_g = np.linalg.norm(w), np.linalg.norm(g)
        local = coefficient * norm_w / (norm_g + decay * norm_w)
        v = momentum * v + rate * local * (g + decay * w)
        w = w - v
    return w


@pytest.mark.parametrize('decay', [0.01, 1.0])  # 1: as large as the gradient
def test_lars_is_algorithm_1_of_its_paper_layer_by_layer_also_where_layers_are_stacked(decay):
    c = config(optimizer__name='lars', optimizer__weight_decay=decay)
    grads, rates = gradients(3), [2.0, 2.0, 0.5]
    got = run(c, grads, rates)
    np.testing.assert_allclose(got['block1']['kernel'], lars(
        PARAMS['block1']['kernel'], [g['block1']['kernel'] for g in grads], rates, decay, 0.9),
        rtol=1e-5)
    for i in range(2):
        np.testing.assert_allclose(got['blocks']['kernel'][i], lars(
            PARAMS['blocks']['kernel'][i], [g['blocks']['kernel'][i] for g in grads], rates, decay,
            0.9), rtol=1e-5)


@pytest.mark.parametrize('decays', [True, False])
def test_lars_does_not_rescale_biases_and_gammas(decays):
    c = config(optimizer__name='lars', optimizer__momentum=0.0, optimizer__weight_decay=0.01,
               optimizer__decay_bn_and_bias=decays)
    grads = gradients(1)
    got, decay = run(c, grads, [2.0]), 0.01 if decays else 0.0
    for layer, name in (('block1', 'bias'), ('blocks', 'scale')):
        w, g = PARAMS[layer][name], grads[0][layer][name]
        np.testing.assert_allclose(got[layer][name], w - 2.0 * (g + decay * w), rtol=1e-5)


def test_a_layer_of_zeros_or_without_gradient_has_the_local_rate_1_as_in_mlperf_and_timm():
    c = config(optimizer__name='lars', optimizer__momentum=0.0, optimizer__weight_decay=0.1)
    params = {'zero': {'kernel': jnp.zeros((1, 2))}, 'still': {'kernel': jnp.ones((1, 2))}}
    grads = {'zero': {'kernel': jnp.ones((1, 2))}, 'still': {'kernel': jnp.zeros((1, 2))}}
    got = run(c, [grads], [0.5], params)
    np.testing.assert_allclose(got['zero']['kernel'], -0.5, rtol=1e-6)
    np.testing.assert_allclose(got['still']['kernel'], 1 - 0.5 * 0.1, rtol=1e-6)


def rates(c, errors):
    config_lib.check_ranges(config_lib.given(c))
    schedule = schedules.create(c)

    def step(carry, error):
        state, i = carry
        state, rate = schedule.update(state, i, error)
        return (state, i + 1), rate

    return np.asarray(jax.lax.scan(
        step, (schedule.init(), jnp.int32(0)), jnp.asarray(errors, jnp.float32))[1])


def test_steps_fall_at_the_boundaries():
    c = config(schedule__boundaries=(3, 5))
    np.testing.assert_allclose(rates(c, [90] * 7), [0.1] * 3 + [0.01] * 2 + [0.001] * 2, rtol=1e-6)


def test_cosine_with_linear_warmup_climbs_and_falls_to_zero():
    c = config(schedule__name='cosine', schedule__warmup='linear', schedule__warmup_steps=4)
    c.num_steps = 12
    got = rates(c, [90] * 12)
    np.testing.assert_allclose(got[:4], 0.1 * np.array([0.25, 0.5, 0.75, 1]), rtol=1e-6)
    np.testing.assert_allclose(
        got[4:], 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8)), rtol=1e-5, atol=1e-8)


def test_the_plateau_rule_divides_the_rate_when_the_error_stops_falling():
    c = config(schedule__name='plateau', schedule__plateau_window=2, schedule__plateau_patience=2,
               schedule__plateau_min_factor=0.01)
    falling = [80, 80, 60, 60, 40, 40]
    flat = [40, 40] * 8
    got = rates(c, falling + flat)
    # Two windows of two steps without a better error: steps 6 to 9; the rate falls with the tenth.
    np.testing.assert_allclose(got[:9], 0.1, rtol=1e-6)
    np.testing.assert_allclose(got[9:13], 0.01, rtol=1e-6)
    np.testing.assert_allclose(got[13:], 0.001, rtol=1e-6)  # and never below a hundredth


def test_error_warmup_ends_when_the_training_error_is_below_80_percent_for_good():
    c = config(schedule__warmup='error', schedule__warmup_window=3)
    # One good batch does not end it: the mean over a window does.
    got = rates(c, [90, 70, 90, 79, 79, 79, 95, 95, 95])
    np.testing.assert_allclose(got, [0.01] * 5 + [0.1] * 4, rtol=1e-6)


def test_the_tables_and_the_choices_of_the_config_are_the_same():
    choices = fields.CHOICES
    assert choices['schedule.name'] == tuple(schedules.SCHEDULES)
    assert choices['schedule.warmup'] == tuple(schedules.WARMUPS)
    assert choices['xla_preset'] == tuple(xla_flags.PRESETS)


def test_only_schedules_that_listen_have_a_state():
    """Its tree is part of a checkpoint."""
    trees = {(name, warmup): schedules.create(config(
        schedule__name=name, schedule__warmup=warmup, schedule__plateau_window=1)).init()
        for name in schedules.SCHEDULES for warmup in schedules.WARMUPS}
    for (name, warmup), tree in trees.items():
        expected = {'plateau'} & {name} | ({'warmup'} if warmup == 'error' else set())
        assert set(tree) == expected
