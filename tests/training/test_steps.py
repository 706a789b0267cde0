"""The training step: the same mathematics on any mesh, in any number of parts."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cifar10_r1202
from resnet_jax.distributed import sharding
from resnet_jax.models import conv, vgg
from resnet_jax.training import step as steps
from resnet_jax.training.program import build
from resnet_jax.training.state import recalibrate

STEPS = 4


def step_function(program):
    return jax.jit(program.train_step, donate_argnums=0,
                   out_shardings=(program.shardings, program.everywhere))


@functools.cache
def run(config_json, num_steps=STEPS, dtype=jnp.float64):
    """Losses, the final state after some steps, and a function that gives the compiled step.

    What is computed of one config serves all tests.

    In float64, unless said otherwise: in float32 a ReLU whose input is within rounding of zero may
    or may not let a pixel through, and runs that differ in one rounding drift apart in jumps. That
    of ResNet-20 on digits differs by 4e-3 between one device and eight after 20 steps at learning
    rate 0.01, that of ResNet-8 by 9e-7; in float64 both differ by 4e-16.
    """
    with jax.enable_x64(dtype == jnp.float64):
        return _run(ConfigDict(json.loads(config_json)), num_steps, dtype)


def after_steps(config, *args):
    """What `run` returns of a config, whose fields may change afterwards."""
    return run(config.to_json(), *args)


def _run(config, num_steps, dtype):
    program = build(config, sharding.create_mesh(config))
    program = dataclasses.replace(program, model=program.model.clone(dtype=dtype))
    state = jax.jit(program.create_state, out_shardings=program.shardings)()
    state = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, state)
    step = step_function(program)
    inputs = next(program.train_data.inputs(0))
    losses = []
    for _ in range(num_steps):
        state, report = step(state, inputs)
        losses.append(float(report.metrics.loss.total / report.metrics.loss.count))
    assert step._cache_size() == 1  # one compilation
    return np.array(losses), state, lambda: step.lower(state, inputs).compile()


@pytest.fixture
def slow_config(tiny_config):
    """Of a low rate; a batch has eight groups, of which each of eight devices gets one."""
    tiny_config.schedule.learning_rate = 0.01
    tiny_config.model.width = 4  # products of float64 are slow
    return tiny_config


@pytest.mark.parametrize(
    'virtual_batch_size', [None, pytest.param(8, marks=pytest.mark.slow)])
def test_eight_devices_give_the_losses_of_one(slow_config, virtual_batch_size):
    slow_config.model.virtual_batch_size = virtual_batch_size
    one, *_ = after_steps(slow_config)
    slow_config.mesh.data = 8
    eight, *_ = after_steps(slow_config)
    assert len(set(one)) == STEPS  # every step changed something
    np.testing.assert_allclose(eight, one, rtol=1e-9)


@pytest.mark.slow
def test_groups_that_span_devices_give_the_losses_of_one(slow_config):
    slow_config.model.virtual_batch_size = 32  # two groups of four devices each
    one, *_ = after_steps(slow_config)
    slow_config.mesh.data = 8
    np.testing.assert_allclose(after_steps(slow_config)[0], one, rtol=1e-9)


@pytest.mark.slow
def test_in_float32_eight_devices_stay_within_rounding_of_one(slow_config):
    one, *_ = after_steps(slow_config, 5, jnp.float32)
    slow_config.mesh.data = 8
    np.testing.assert_allclose(after_steps(slow_config, 5, jnp.float32)[0], one, rtol=1e-4)


COLLECTIVE = re.compile(
    r'^.* = .* (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\(.*$',
    re.MULTILINE)


def test_whole_groups_on_each_device_need_no_communication_for_batch_statistics(slow_config):
    slow_config.mesh.data = 8
    found = {}
    for size in (8, None):
        slow_config.model.virtual_batch_size = size
        *_, compiled = after_steps(slow_config)
        with jax.enable_x64(True):
            text = compiled().as_text()
        lines = [match.group(0) for match in COLLECTIVE.finditer(text)]
        assert lines and all('op_name' in line for line in lines)
        found[size] = [line for line in lines if 'batch_statistics' in line]
    assert found[8] == []
    assert len(found[None]) >= 7  # at least one for each of the seven normalisations of ResNet-8


@pytest.mark.slow
def test_accumulating_in_parts_equals_the_whole_batch(slow_config):
    whole, whole_state, _ = after_steps(slow_config)
    slow_config.optimizer.accumulation_steps = 4
    parts, parts_state, _ = after_steps(slow_config)
    np.testing.assert_allclose(parts, whole, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(parts_state.variables),
                    jax.tree.leaves(whole_state.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    'virtual_batch_size', [
        pytest.param(8, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)])
def test_the_parts_of_a_batch_do_not_depend_on_the_mesh(slow_config, virtual_batch_size):
    slow_config.model.virtual_batch_size = virtual_batch_size
    slow_config.optimizer.accumulation_steps = 4
    one, *_ = after_steps(slow_config)
    slow_config.mesh.data = 8
    np.testing.assert_allclose(after_steps(slow_config)[0], one, rtol=1e-9)


def test_the_program_of_resnet_1202_is_as_long_as_that_of_resnet_20():
    def lines(depth):
        config = cifar10_r1202.get_config()
        config.model.depth, config.mesh.data = depth, 1
        config.batch_size = config.model.virtual_batch_size = 8
        program = build(config, sharding.create_mesh(config), blank=True)
        text = program.lower_train_steps(
            program.state, (program.train_data.input_shapes,), 1).as_text()
        return len(text.splitlines())

    assert lines(1202) == lines(20)


@pytest.mark.slow
@pytest.mark.parametrize(('warmup', 'decay'), [
    (True, 2 / 11), pytest.param(False, 0.75, marks=pytest.mark.slow)])
def test_the_moving_average_follows_the_parameters(tiny_config, warmup, decay):
    tiny_config.optimizer.update(ema_decay=0.75, ema_warmup=warmup)
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    inputs, step = next(program.train_data.inputs(0)), jax.jit(program.train_step)
    states = [jax.jit(program.create_state)()]
    for _ in range(2):
        states.append(step(states[-1], inputs)[0])
    states = states[1:]
    for before, average, now in zip(*(jax.tree.leaves(tree) for tree in (
            states[0].ema, states[1].ema, states[1].variables)), strict=True):
        np.testing.assert_allclose(
            average, decay * before + (1 - decay) * now, rtol=1e-5, atol=1e-6)
    assert states[1].eval_variables is states[1].ema


def test_with_a_warm_up_the_moving_average_forgets_the_initial_parameters():
    def weight_of_the_initial_ones(updates, warmup):
        decays = [steps.ema_decay(0.9999, warmup, jnp.int32(t)) for t in range(updates)]
        return np.prod(np.float64(decays))

    assert weight_of_the_initial_ones(500, False) == pytest.approx(0.951, abs=1e-3)
    expected = math.factorial(9) * math.factorial(500) / math.factorial(509)
    assert weight_of_the_initial_ones(500, True) == pytest.approx(expected, rel=1e-3)
    assert expected < 1e-18
    # The largest decay is reached at (1 + t) / (10 + t) = 3 / 4.
    assert steps.ema_decay(0.75, True, jnp.int32(25)) < 0.75
    assert steps.ema_decay(0.75, True, jnp.int32(26)) == steps.ema_decay(
        0.75, True, jnp.int32(10**6)) == 0.75


@pytest.mark.parametrize('pipeline', ['resident', 'host'])
@pytest.mark.parametrize('family', ['cifar', pytest.param('vgg', marks=pytest.mark.slow)])
def test_runs_that_differ_in_nothing_but_the_seed_are_one_program(
        tiny_config, monkeypatch, family, pipeline):
    tiny_config.data.update(source='tfds', tfds_name='cifar10', channels=3, pipeline=pipeline,
                            crop_padding=4, flip=True, mixup_alpha=0.2, color_noise=0.1)
    tiny_config.data.image_size = 32 if family == 'cifar' else 224
    if family == 'vgg':  # which drops out
        monkeypatch.setitem(vgg.STAGE_SIZES, 16, (1,) * 5)
        tiny_config.model.update(family='vgg', depth=16, width=1)
    texts = []
    for seed in (0, 7):
        tiny_config.seed = seed
        program = build(tiny_config, sharding.create_mesh(tiny_config), blank=True)
        texts.append(program.lower_train_steps(
            program.state, (program.train_data.input_shapes,), 1).as_text())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_step_of_one_device_does_not_depend_on_how_many_are_visible(tiny_config, monkeypatch):
    monkeypatch.setattr(conv, 'CACHE_BYTES', 2**16)  # so that filter gradients are cut into parts

    def text(mesh_size, visible):
        monkeypatch.setattr(jax, 'device_count', lambda: visible)
        tiny_config.mesh.data = mesh_size
        program = build(tiny_config, sharding.create_mesh(tiny_config))
        return program.lower_train_steps(
            program.state, (program.train_data.input_shapes,), 1).as_text()

    alone = text(1, 1)
    assert text(1, 8) == alone
    # On several devices, the gradient of each of the filters is a single sum over the batch.
    assert alone.count('stablehlo.while') >= text(8, 8).count('stablehlo.while') + 5


class Recorder:
    """Takes the place of a network; keeps the keys of dropout that it is given."""

    def __init__(self):
        self.keys = []

    def apply(self, variables, images, *, train, rngs, mutable):
        key = jax.random.key_data(rngs['dropout'])
        if not isinstance(key, jax.core.Tracer):
            self.keys.append(tuple(key.tolist()))
        return jnp.zeros((len(images), 10)), {}


@pytest.mark.slow
@pytest.mark.parametrize('parts', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_no_key_of_dropout_is_a_key_of_the_augmentation(tiny_config, parts):
    tiny_config.optimizer.accumulation_steps = parts
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    state = jax.jit(program.create_state)()
    batch = {'image': jnp.zeros((64, 1)), 'label': jnp.zeros(64, jnp.int32),
             'mask': jnp.ones(64)}
    network = Recorder()
    with jax.disable_jit():
        steps.train_step(
            state, batch, jnp.uint32(7), task=program.task, model=network,
            optimizer=program.optimizer, schedule=program.schedule, config=tiny_config)
    step = jax.random.fold_in(jax.random.key(7), 0)
    images = jax.vmap(jax.random.fold_in, (None, 0))(step, jnp.arange(64))
    taken = {tuple(key.tolist()) for key in [
        *jax.random.key_data(images), jax.random.key_data(step),
        jax.random.key_data(jax.random.fold_in(step, 2**32 - 1))]}
    assert len(set(network.keys)) == parts
    assert not taken & set(network.keys)


def test_label_smoothing_is_for_training_only(tiny_config):
    tiny_config.loss.label_smoothing = 0.5
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    state = jax.jit(program.create_state)()
    evaluate = jax.jit(program.eval_step)
    inputs = next(program.eval_data.inputs(0))
    smoothed = evaluate(state, inputs, *program.no_sums())[1].report()
    tiny_config.loss.label_smoothing = 0.0
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    assert jax.jit(program.eval_step)(
        state, inputs, *program.no_sums())[1].report() == smoothed


def test_recalibration_is_the_strict_average_over_batches(tiny_config):
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    state = jax.jit(program.create_state)()
    inputs = next(program.train_data.inputs(0))
    statistics = jax.jit(program.batch_statistics)
    batches = [statistics(state, inputs, jnp.int32(step))[1] for step in range(5)]
    got = recalibrate(iter(batches))
    expected = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *batches)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The statistics of the first layer, by hand: convolution, then mean over images and pixels.
    batch = jax.jit(functools.partial(program.train_data.batch, normalization=state.normalization))(
        inputs, 0)
    kernel = state.params['stem']['conv']['kernel']
    y = jax.lax.conv_general_dilated(
        batch['image'], kernel, (1, 1), [(1, 1), (1, 1)],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(
        batches[0]['stem']['norm']['mean'], y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
