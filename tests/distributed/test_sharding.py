"""The mesh, and where the state lies on it."""

import functools
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import accumulation
from resnet_jax.training.program import build


@pytest.mark.parametrize(('data', 'model', 'devices', 'shape'), [
    (-1, 1, 8, (8, 1)), (-1, 2, 8, (4, 2)), (1, 1, 8, (1, 1)), (2, 4, 8, (2, 4))])
def test_the_mesh_takes_the_devices_that_the_config_asks_for(
        tiny_config, data, model, devices, shape):
    tiny_config.mesh.data, tiny_config.mesh.model = data, model
    assert sharding.mesh_shape(tiny_config, devices) == shape


@pytest.mark.parametrize(('data', 'model', 'sentence'), [
    (16, 1, 'mesh.data=16 times mesh.model=1 needs at least 16 devices, but 8 are available'),
    (3, 3, 'mesh.data=3 times mesh.model=3 needs at least 9 devices, but 8 are available'),
    (-1, 16, '^mesh.model=16 needs at least 16 devices, but 8 are available')])
def test_a_mesh_that_does_not_fit_is_an_error(tiny_config, data, model, sentence):
    tiny_config.mesh.data, tiny_config.mesh.model = data, model
    with pytest.raises(UserError, match=sentence):
        sharding.create_mesh(tiny_config)


def after(steps, config, mesh):
    """The loss of the last of some steps with the first batch, on this mesh, and the state."""
    program = build(config, mesh)
    state = jax.jit(program.create_state, out_shardings=program.shardings)()
    step = jax.jit(program.train_step, out_shardings=(program.shardings, program.everywhere))
    inputs = next(program.train_data.inputs(0))
    for _ in range(steps):
        state, report = step(state, inputs)
    return float(report.metrics.loss.total), jax.device_get(state)


class Chip(types.SimpleNamespace):
    """A device of a slice, as far as a mesh looks at it."""

    platform, device_kind, process_index = 'cpu', 'simulated', 0


def test_slices_lie_along_the_axis_data():
    # As a runtime may list them: the slices take turns.
    chips = [Chip(id=i, slice_index=i % 2) for i in range(8)]
    mesh = sharding.over_slices((4, 2), chips, 2)
    assert mesh.shape == (4, 2)
    assert [[chip.slice_index for chip in row] for row in mesh] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert {chip.id for chip in mesh.flat} == set(range(8))
    for shape, count in (((1, 8), 8), ((3, 2), 6), ((7, 1), 7)):
        with pytest.raises(UserError, match='must be a multiple of the number of slices'):
            sharding.over_slices(shape, chips[:count], 2)


@pytest.mark.slow
def test_a_mesh_of_two_slices_gives_the_steps_of_one(tiny_config, monkeypatch):
    """On the simulated devices, of which every second is said to be of another slice."""
    tiny_config.mesh.data, tiny_config.schedule.learning_rate = 8, 0.01
    straight, over_slices = sharding.create_mesh(tiny_config), sharding.over_slices
    monkeypatch.setattr(sharding, 'num_slices', lambda devices: 2)
    monkeypatch.setattr(sharding, 'over_slices', lambda shape, devices, slices: np.array(
        [chip.device for chip in over_slices(
            shape, [Chip(device=device, slice_index=device.id % 2) for device in devices],
            slices).flat]).reshape(shape))
    mesh = sharding.create_mesh(tiny_config)
    assert [device.id for device in mesh.devices.flat] == [0, 2, 4, 6, 1, 3, 5, 7]
    # Images 0 to 31 of 64 lie in the first slice, and with them their virtual batches of 8.
    assert accumulation.spanning(tiny_config, 8) is None
    places = NamedSharding(mesh, P('data')).devices_indices_map((64,))
    assert {device.id: images.start for device, (images,) in places.items()} == {
        0: 0, 2: 8, 4: 16, 6: 24, 1: 32, 3: 40, 5: 48, 7: 56}
    first, second = (after(2, tiny_config, used) for used in (straight, mesh))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    tiny_config.mesh.data = 4
    alone = after(2, tiny_config, Mesh(mesh.devices[:4], mesh.axis_names))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), first, alone)


def test_fsdp_splits_parameters_and_optimizer_state_over_all_devices(tiny_config):
    tiny_config.mesh.data = 8
    tiny_config.mesh.parameters = 'fsdp'
    tiny_config.model.width = 32
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    state = jax.jit(program.create_state, out_shardings=program.shardings)()

    def bytes_on_one_device(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    for tree in (state.params, state.opt_state):
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        assert bytes_on_one_device(tree) < whole / 6


def test_rules_decide_before_the_preset(tiny_config):
    tiny_config.mesh.data, tiny_config.mesh.model = 4, 2
    tiny_config.mesh.rules = (('head/kernel', (None, 'model')),)
    program = build(tiny_config, sharding.create_mesh(tiny_config))
    assert program.shardings.params['head']['kernel'].spec == P(None, 'model')
    trace = [s for path, s in jax.tree.leaves_with_path(program.shardings.opt_state)
             if 'head' in str(path) and 'kernel' in str(path)]
    assert [s.spec for s in trace] == [P(None, 'model')]
    assert program.shardings.params['head']['bias'].spec == P()


@pytest.mark.parametrize('rule', [
    ('head/kernel', ('modle',)), ('head/bias', (None, 'model')), ('stem/conv/kernel', ('model',))])
def test_rules_that_do_not_fit_are_named(tiny_config, rule):
    tiny_config.mesh.data, tiny_config.mesh.model = 4, 2
    tiny_config.mesh.rules = (rule,)
    with pytest.raises(UserError, match=rule[0]):
        build(tiny_config, sharding.create_mesh(tiny_config))


@pytest.mark.slow
def test_fsdp_gives_the_losses_of_replicated_parameters(tiny_config):
    tiny_config.mesh.data = 8
    tiny_config.schedule.learning_rate = 0.01
    losses = []
    for kind in ('replicated', 'fsdp'):
        tiny_config.mesh.parameters = kind
        losses.append(after(5, tiny_config, sharding.create_mesh(tiny_config))[0])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
