"""ResNeXt, wide and pre-activation networks and ResNet-D: their parts, and how they execute."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.models.blocks import Shortcut
from resnet_jax.models.conv import Conv
from resnet_jax.models.pool import average_pool
from resnet_jax.models.resnet_v2 import PreActivationBlock
from resnet_jax.training import loop
from tests import jitted

RESNEXT = {'depth': 50, 'groups': 4, 'bottleneck_width': 16}


def fields(**changes):
    config = config_lib.default().model
    config.update({'family': 'imagenet', 'depth': 50, 'num_classes': 7, 'width': 8, **changes})
    return config


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(('changes', 'images'), [
    ({**RESNEXT, 'deep_stem': True, 'shortcut': 'D'}, (4, 40, 32, 3)),
    ({'family': 'cifar_v2', 'depth': 20, 'shortcut': 'A', 'width': 4}, (4, 8, 8, 1)),
    ({'family': 'cifar_v2', 'depth': 29, 'bottleneck': True, 'width': 4}, (4, 8, 8, 1)),
])
def test_scanned_and_unrolled_networks_have_one_tree_and_give_the_same(changes, images):
    x, outputs = normal(*images), []
    variables = None
    for unroll in (False, True):
        model = models.create(fields(unroll=unroll, **changes))
        variables = variables or jax.jit(
            lambda model=model: model.init(jax.random.key(0), x, train=False))()
        outputs.append(jax.jit(lambda variables, model=model: model.apply(
            variables, x, train=True, mutable='batch_stats'))(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *outputs)


@pytest.mark.parametrize('bottleneck', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_program_of_a_pre_activation_network_does_not_grow_with_its_depth(bottleneck):
    def equations(depth):
        model = models.create(fields(family='cifar_v2', depth=depth, bottleneck=bottleneck,
                                     shortcut='B' if bottleneck else 'A', unroll=False))
        x = jnp.zeros((2, 8, 8, 1))
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))

        def loss(params, batch_stats):
            return model.apply({'params': params, 'batch_stats': batch_stats}, x, train=True,
                               mutable='batch_stats')[0].sum()

        return count(jax.make_jaxpr(jax.grad(loss))(
            variables['params'], variables['batch_stats']).jaxpr)

    def count(jaxpr):
        inner = [getattr(value, 'jaxpr', value) for eqn in jaxpr.eqns
                 for value in eqn.params.values() if hasattr(value, 'jaxpr')]
        return len(jaxpr.eqns) + sum(count(one) for one in inner if hasattr(one, 'eqns'))

    shallow, deep = (164, 1001) if bottleneck else (20, 110)
    assert equations(shallow) == equations(deep) > 100


def test_the_first_unit_of_a_stage_carries_its_activation_and_others_their_input():
    # With kernels of zero a unit is its shortcut.
    x = normal(2, 4, 4, 6)
    for shared in (False, True):
        block = PreActivationBlock(
            6, 1, 'v1', Conv, models.resnet.BatchNorm,
            lambda **given: Shortcut(option='A', conv=Conv, norm=None, **given), None, shared)
        variables = jax.tree.map(
            lambda leaf: leaf * (leaf.ndim < 4), block.init(jax.random.key(0), x, train=False))
        y = block.apply(variables, x, train=False)
        np.testing.assert_allclose(y, np.maximum(x, 0) if shared else x, atol=1e-4)


def test_pre_activation_ends_in_a_normalisation_and_begins_with_a_bare_convolution():
    model = models.create(fields(family='cifar_v2', depth=8, shortcut='A'))
    x = normal(2, 8, 8, 1)
    variables = jitted.init(model, jax.random.key(0), x, train=False)
    assert set(variables['params']['stem']) == {'conv'}
    assert variables['params']['norm']['scale'].shape == (32,)
    assert 'norm' not in variables['params']['stage2']['block1'].get('shortcut', {})
    maps = jitted.apply(model, variables, x, train=False, method='features')
    assert maps['stage3'].min() == 0 and maps['stage2'].min() < 0


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 2)])
def test_averages_of_four_pixels_have_fewer_to_average_at_odd_ends(size):
    x = normal(2, *size, 3)
    expected = np.stack([np.stack([
        x[:, i:i + 2, j:j + 2].mean((1, 2)) for j in range(0, size[1], 2)], 1)
        for i in range(0, size[0], 2)], 1)
    np.testing.assert_allclose(average_pool(x), expected, rtol=1e-5, atol=1e-6)


def test_option_d_sees_every_pixel_and_b_one_of_four():
    x = normal(1, 8, 8, 4)
    for option, seen in (('B', 1 / 4), ('D', 1)):
        shortcut = Shortcut(option, 8, 2, Conv, None)
        variables = shortcut.init(jax.random.key(0), x, train=False)
        gradient = jax.grad(lambda x, shortcut=shortcut, variables=variables: shortcut.apply(
            variables, x, train=False).sum())(x)
        assert (gradient != 0).mean() == seen


def test_groups_divide_the_multiply_adds_and_the_weights_of_the_3x3_alone():
    def weights(**changes):
        model = models.create(fields(bottleneck_width=16, **changes))
        shapes = jax.eval_shape(lambda: model.init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))['params']
        return {name: math.prod(shapes['stage2']['block1'][name]['kernel'].shape)
                for name in ('conv1', 'conv2', 'conv3')}

    whole, grouped = weights(), weights(groups=8)
    assert whole == {'conv1': 32 * 32, 'conv2': 9 * 32 * 32, 'conv3': 32 * 64}
    assert grouped == {**whole, 'conv2': whole['conv2'] // 8}


@pytest.mark.parametrize(('changes', 'sentence'), [
    ({'groups': 3}, r'model\.groups must divide the 8 filters'),
    ({'groups': 0}, r'model\.groups must divide'),
    ({'depth': 18, 'groups': 2}, r'model\.groups and model\.bottleneck_width need bottlenecks'),
    ({'depth': 34, 'bottleneck_width': 16}, 'need bottlenecks'),
    ({'family': 'cifar', 'depth': 20, 'deep_stem': True}, r'needs model\.family=imagenet'),
    ({'deep_stem': True, 'stem_width': 1}, 'at least two filters'),
    ({'family': 'cifar', 'depth': 26, 'bottleneck': True},
     r'9n \+ 2 .* with bottlenecks \(11, 20, 29, …\), got 26; the nearest is 29'),
    ({'family': 'imagenet_v2', 'depth': 18}, r'model\.depth must be 50, 101 or 152'),
    ({'family': 'imagenet_v2', 'shortcut': 'C'}, r"model\.shortcut must be A or B .* got 'C'"),
    ({'family': 'imagenet_v2', 'deep_stem': True}, r'model\.deep_stem must be false'),
    ({'family': 'imagenet_v2', 'zero_init_last_gamma': True}, 'last_gamma must be false'),
])
def test_fields_that_do_not_go_together_are_named(changes, sentence):
    with pytest.raises(models.ConfigError, match=sentence):
        models.create(fields(**changes))


@pytest.mark.parametrize(('changes', 'title'), [
    (RESNEXT, 'ResNeXt-50 4x4d'), ({'bottleneck_width': 16}, 'Wide ResNet-50-2'),
    ({'depth': 18, 'deep_stem': True, 'shortcut': 'D'}, 'ResNet-18-D'),
    ({'family': 'cifar_v2', 'depth': 110}, 'ResNet-110 v2'), ({'deep_stem': True}, 'ResNet-50-C')])
def test_titles(changes, title):
    assert models.title(fields(**changes)) == title


@pytest.mark.slow
@pytest.mark.parametrize(('depth', 'bottleneck'), [(110, False), (1001, True)])
def test_pre_activation_networks_train_on_digits_scanned(depth, bottleneck, tiny_config, tmp_path):
    tiny_config.model.update(family='cifar_v2', depth=depth, bottleneck=bottleneck, unroll=False,
                             shortcut='B' if bottleneck else 'A', width=4)
    tiny_config.batch_size, tiny_config.num_steps = 16, 6
    tiny_config.eval.every_steps = tiny_config.checkpoint.every_steps = None
    tiny_config.log.every_steps = 1
    values = loop.train(tiny_config, tmp_path)
    assert values['eval/count'] == 297 and math.isfinite(values['eval/loss'])
