"""Training starts from stored weights, leaves alone what is frozen, and says what does not fit."""

import jax
import numpy as np
import pytest

from resnet_jax import program, sharding, train
from resnet_jax.errors import UserError
from resnet_jax.weights import stored


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """Ten steps of training on digits."""
    from conftest import tiny_config
    folder = tmp_path_factory.mktemp('base')
    config = tiny_config.__wrapped__() if hasattr(tiny_config, '__wrapped__') else tiny_config()
    config.num_steps = 10
    train.train(config, folder)
    return folder


def build(config):
    return program.build(config, sharding.create_mesh(config, jax.devices()[:1]))


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)}


def test_the_start_has_the_weights_and_a_new_head(base, tiny_config):
    tiny_config.init.checkpoint = str(base)
    tiny_config.optimizer.ema_decay = 0.9
    start = build(tiny_config).initial_state()
    weights = stored.read(base)
    old = paths({'params': weights.variables['params'],
                 'batch_stats': weights.variables['batch_stats']})
    for variables in (start.variables, start.ema):
        new = paths(variables)
        assert {name for name in new if not np.array_equal(new[name], old[name])} == {
            'params/head/kernel', 'params/head/bias'} - (
                {'params/head/bias'} if not old['params/head/bias'].any() else set())
    np.testing.assert_array_equal(start.normalization['mean'], weights.normalization['mean'])
    tiny_config.init.new_head = False
    kept = paths(build(tiny_config).initial_state().variables)
    assert all(np.array_equal(kept[name], old[name]) for name in kept)


def test_frozen_layers_and_statistics_keep_every_bit(base, tiny_config, tmp_path):
    tiny_config.num_steps = 10
    tiny_config.init.checkpoint = str(base)
    tiny_config.init.freeze = ('^stem/', 'stage[12]')
    tiny_config.init.freeze_bn = True
    tiny_config.schedule.learning_rate = 0.01
    train.train(tiny_config, tmp_path)
    old, new = stored.read(base).variables, stored.read(tmp_path).variables
    old_params, new_params = paths(old['params']), paths(new['params'])
    changed = {name.split('/')[0] for name in old_params
               if not np.array_equal(old_params[name], new_params[name])}
    assert changed == {'stage3', 'head'}
    jax.tree.map(np.testing.assert_array_equal, old['batch_stats'], new['batch_stats'])
    # The optimizer remembers nothing of what is frozen.
    moments = [leaf for leaf in jax.tree.leaves(build(tiny_config).state.opt_state)]
    assert len(moments) == sum(name.startswith(('stage3', 'head')) for name in new_params)


def test_without_freezing_every_layer_and_statistic_moves(base, tiny_config, tmp_path):
    tiny_config.num_steps = 3
    tiny_config.init.checkpoint = str(base)
    train.train(tiny_config, tmp_path)
    old, new = stored.read(base).variables, stored.read(tmp_path).variables
    assert all(not np.array_equal(a, b) for a, b in zip(
        paths(old).values(), paths(new).values(), strict=True))


def test_a_start_from_weights_learns_faster(base, tiny_config, tmp_path):
    tiny_config.num_steps = 10
    random = train.train(tiny_config, tmp_path / 'random')
    tiny_config.init.checkpoint = str(base)
    tuned = train.train(tiny_config, tmp_path / 'tuned')
    assert tuned['eval/loss'] < 0.8 * random['eval/loss']


def test_going_on_does_not_need_the_first_weights(base, tiny_config, tmp_path):
    tiny_config.num_steps = 5
    tiny_config.init.checkpoint = str(base)
    train.train(tiny_config, tmp_path)
    tiny_config.num_steps = 6
    tiny_config.init.checkpoint = str(tmp_path / 'moved away')
    train.train(tiny_config, tmp_path)


@pytest.mark.parametrize(('changes', 'told'), [
    ({'init.checkpoint': '/nothing'}, 'there is no folder'),
    ({'model.width': 4}, 'arrays differ, among them params/'),
    ({'init.freeze': ('stage9',)}, "'stage9' is found in no path"),
    ({'init.freeze': ('(',)}, 'is no regular expression'),
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
    tiny_config.init.checkpoint = ''
    tiny_config.num_steps = 1
    train.train(tiny_config, tmp_path)
    tiny_config.init.checkpoint = str(tmp_path)
    tiny_config.data.normalization = 'per_channel'
    with pytest.raises(UserError, match=r'set data\.normalization'):
        build(tiny_config).initial_state()
