"""Training starts from stored weights, leaves alone what is frozen, and says what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import loop, program
from resnet_jax.training.state import with_weights
from resnet_jax.weights import stored
from tests.weights.networks import store


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """Weights that fit `tiny_config`, none of them at its default."""
    folder = tmp_path_factory.mktemp('base')
    store(folder, channels=1, size=8)
    return folder


def build(config):
    return program.build(config, sharding.create_mesh(config, jax.devices()[:1]))


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)}


def test_the_start_has_the_weights_and_a_new_head(base, tiny_config):
    tiny_config.init.checkpoint = str(base)
    tiny_config.optimizer.ema_decay = 0.9
    read = stored.read(base)
    old = paths(dict(read.variables))
    for new_head, new_names in ((True, {'params/head/kernel', 'params/head/bias'}), (False, set())):
        tiny_config.init.new_head = new_head
        start = build(tiny_config).initial_state()
        for variables in (start.variables, start.ema):
            new = paths(variables)
            assert {n for n in new if not np.array_equal(new[n], old[n])} == new_names
    np.testing.assert_array_equal(start.normalization['mean'], read.normalization['mean'])


@pytest.mark.slow
def test_frozen_layers_and_statistics_keep_every_bit(base, tiny_config, tmp_path):
    tiny_config.num_steps = 5
    tiny_config.eval.every_steps = None
    tiny_config.init.checkpoint = str(base)
    tiny_config.init.freeze = ('^stem/', 'stage[12]')
    tiny_config.init.freeze_bn = True
    loop.train(tiny_config, tmp_path)
    # Going on needs the first weights no more.
    tiny_config.num_steps = 6
    tiny_config.init.checkpoint = str(tmp_path / 'moved away')
    loop.train(tiny_config, tmp_path)
    old, new = stored.read(base).variables, stored.read(tmp_path).variables
    old_params, new_params = paths(old['params']), paths(new['params'])
    same = {name for name in old_params if np.array_equal(old_params[name], new_params[name])}
    assert same == {name for name in old_params if name.startswith(('stem', 'stage1', 'stage2'))}
    jax.tree.map(np.testing.assert_array_equal, old['batch_stats'], new['batch_stats'])
    # The optimizer remembers nothing of what is frozen.
    assert len(jax.tree.leaves(build(tiny_config).state.opt_state)) == len(old_params) - len(same)


@pytest.mark.parametrize(('changes', 'told'), [
    ({'init.checkpoint': '/nothing'}, 'there is no folder'),
    ({'model.width': 4}, 'arrays differ, among them batch_stats/stage1'),
    ({'init.freeze': ('stage9',)}, "'stage9' does not match any parameter"),
    ({'init.freeze': ('(',)}, 'init.freeze must be regular expressions'),
])
def test_what_does_not_fit_is_told(changes, told, base, tiny_config):
    tiny_config.init.checkpoint = str(base)
    tiny_config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=told):
        build(tiny_config).initial_state()


def test_a_mean_image_does_not_fit_a_mean_colour(base, tiny_config, tmp_path):
    tiny_config.init.checkpoint = str(base)
    tiny_config.data.normalization = 'per_pixel_mean'
    start = build(tiny_config).initial_state()  # a colour is an image too
    assert start.normalization['mean'].shape == (8, 8, 1)
    image = {'mean': np.zeros((8, 8, 1), np.float32), 'std': np.ones(1, np.float32)}
    stored.write(tmp_path, dataclasses.replace(stored.read(base), normalization=image))
    tiny_config.init.checkpoint = str(tmp_path)
    tiny_config.data.normalization = 'per_channel'
    with pytest.raises(UserError, match=r'set data\.normalization'):
        build(tiny_config).initial_state()


def test_of_a_mean_image_of_another_size_the_mean_colour_is_taken(base, tiny_config, tmp_path):
    mean = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    image = {'mean': mean, 'std': np.ones(1, np.float32)}
    stored.write(tmp_path, dataclasses.replace(stored.read(base), normalization=image))
    tiny_config.init.checkpoint = str(tmp_path)
    tiny_config.data.normalization = 'per_pixel_mean'
    mean = build(tiny_config).initial_state().normalization['mean']
    assert mean.shape == (8, 8, 1) and (mean == 7.5).all()


def test_heads_of_another_task_are_left_out_and_those_of_this_one_are_new(base, tiny_config):
    """As where a detector starts from a classifier."""
    before = build(tiny_config).initial_state()
    head = {'kernel': np.zeros((2, 3), np.float32)}
    moments = {'mean': np.ones(3, np.float32)}
    detector = before.replace(
        params={**{name: part for name, part in before.params.items() if name != 'head'},
                'boxes': jax.device_put(head)},
        batch_stats={**before.batch_stats, 'boxes': jax.device_put(moments)})
    read = stored.read(base)
    started = with_weights(detector, read.variables, read.normalization, ('boxes', 'head'))
    assert 'head' not in started.params
    np.testing.assert_array_equal(started.params['boxes']['kernel'], head['kernel'])
    np.testing.assert_array_equal(started.batch_stats['boxes']['mean'], moments['mean'])
    jax.tree.map(np.testing.assert_array_equal, started.params['stem'],
                 read.variables['params']['stem'])
    with pytest.raises(UserError, match=r'params/boxes/kernel \(missing'):
        with_weights(detector, read.variables, read.normalization, ('head',))
