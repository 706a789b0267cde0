"""The networks of the paper: sizes, variants, and how they are executed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.models.resnet import architecture


def model_config(**fields):
    config = config_lib.default().model
    config.update(dict(family='imagenet', depth=18, num_classes=7, width=8), **fields)
    return config


def bottleneck(**fields):
    """ResNet-50 of one block or two a stage and 4 filters."""
    return models.create(model_config(depth=50, width=4, **fields)).clone(stage_sizes=(2, 1, 1, 1))


def init(model, size=32, channels=3):
    images = np.random.default_rng(0).normal(size=(4, size, size, channels)).astype(np.float32)
    return jax.jit(lambda: model.init(jax.random.key(0), images, train=False))(), images


def shapes(model):
    """The variables of a network as shapes, without computing them."""
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def evaluate(model, variables, images):
    return jax.jit(lambda *args: model.apply(*args, train=False))(variables, images)


def train_output(model, variables, images):
    return jax.jit(lambda *args: model.apply(
        *args, train=True, mutable=['batch_stats'])[0])(variables, images)


def features(model, variables, images):
    """The feature maps by the names of the stages."""
    return jax.jit(lambda *args: model.apply(
        *args, train=False, method='features'))(variables, images)


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator='/')
            for path, _ in jax.tree.leaves_with_path(tree)}


def repeated(**fields):
    """A network of one stage that repeats a block and one that does not, of basic blocks or not."""
    depth = 34 if fields.pop('basic', True) else 50
    return models.create(model_config(depth=depth, width=4, **fields)).clone(stage_sizes=(3, 1))


@pytest.mark.parametrize('fields', [
    dict(shortcut='A'), dict(shortcut='C', basic=False)], ids=str)
def test_scanned_and_unrolled_networks_give_the_same_logits_and_statistics(fields):
    unrolled, scanned = (repeated(unroll=unroll, **fields) for unroll in (True, False))
    variables, images = init(unrolled)
    assert shapes(unrolled) == shapes(scanned)
    expected, got = (jax.tree.leaves(jax.jit(lambda *args, model=model: model.apply(
        *args, train=True, mutable=['batch_stats']))(variables, images))
        for model in (unrolled, scanned))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def training_gradient(model, variables, images):
    """Compiled: parameters -> gradient of a loss, and the running statistics after the step."""
    def loss(params):
        logits, updates = model.apply({**variables, 'params': params}, images, train=True,
                                      mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})
        return jnp.sin(logits).sum(), updates

    return jax.jit(jax.grad(loss, has_aux=True)).lower(variables['params']).compile()


def in_float64(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), tree)


def one_stage(**fields):
    """A stem for CIFAR and one stage of five blocks."""
    return models.create(model_config(
        family='cifar', depth=20, width=4, **fields)).clone(stage_sizes=(5,))


@pytest.fixture(scope='module')
def cifar_gradient():
    """(variables, images, compiled gradient) of a scanned stage that keeps what it likes."""
    model = one_stage(unroll=False)
    variables, images = init(model, size=8)
    with jax.enable_x64(True):
        variables, images = in_float64((variables, images))
        return variables, images, training_gradient(
            model.clone(dtype=jnp.float64), variables, images)


@pytest.mark.parametrize(('kind', 'unroll'), [
    ('conv', False), ('block', False), ('block', True)])
def test_what_is_computed_again_changes_nothing_but_the_memory(cifar_gradient, kind, unroll):
    variables, images, reference = cifar_gradient
    model = one_stage(unroll=unroll, remat=kind)
    with jax.enable_x64(True):
        gradient = training_gradient(model.clone(dtype=jnp.float64), variables, images)
        expected, got = reference(variables['params']), gradient(variables['params'])
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    if not unroll:  # XLA's CPU compiler merges straight-line code again
        memory = [x.memory_analysis().temp_size_in_bytes for x in (gradient, reference)]
        assert memory[0] < 0.9 * memory[1]


def kept_activations(kind, dtype='float32', **fields):
    """(shape without images, dtype) of every activation that the gradient of a network keeps."""
    model = models.create(model_config(remat=kind, dtype=dtype, **fields))
    size = 224 if fields['family'] == 'vgg' else 32
    images = jax.ShapeDtypeStruct((5, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros(images.shape), train=False))

    def vjp(variables, images):
        def network(params):
            return model.apply(
                {**variables, 'params': params}, images, train=True, mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(0)})[0]

        return jax.vjp(network, variables['params'])[1]

    leaves = jax.tree.leaves(jax.eval_shape(vjp, variables, images))
    return [(leaf.shape[1:], leaf.dtype) for leaf in leaves
            if leaf.ndim == 4 and leaf.shape[0] == 5 and leaf.shape[1] > 7]


def test_conv_keeps_the_outputs_of_convolutions_and_block_the_inputs_of_blocks():
    def shapes_kept(kind):
        return sorted(shape for shape, _ in kept_activations(
            kind, family='cifar', depth=8, width=4, shortcut='A'))

    # Of the stem and the three blocks of ResNet-8.
    inputs = [(16, 16, 8), (32, 32, 3), (32, 32, 4), (32, 32, 4)]
    outputs = [(32, 32, 4)] * 3 + [(16, 16, 8)] * 2 + [(8, 8, 16)] * 2
    assert shapes_kept('block') == sorted(inputs)
    assert shapes_kept('conv') == sorted(inputs + outputs)
    assert len(shapes_kept('none')) > len(inputs + outputs)


@pytest.mark.parametrize('kind', ['none', 'conv', 'block'])
def test_bfloat16_networks_keep_no_activation_in_float32(kind):
    kept = kept_activations(kind, 'bfloat16', depth=50, width=4, family='imagenet')
    assert kept and not [x for x in kept if x[1] == jnp.float32 and x[0][-1] > 3]


@pytest.mark.slow
def test_vgg_with_less_kept_has_the_same_gradient():
    base = dict(family='vgg', depth=16, width=1)
    whole = models.create(model_config(**base)).clone(stage_sizes=(1,) * 5)
    variables, images = init(whole, 224)
    expected, got = (training_gradient(model, variables, images)(variables['params']) for model in (
        whole, models.create(model_config(remat='block', **base)).clone(stage_sizes=(1,) * 5)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_vgg_keeps_the_inputs_of_stages_or_the_outputs_of_layers():
    per_layer, per_stage = (kept_activations(kind, family='vgg', depth=16, width=1)
                            for kind in ('none', 'block'))
    assert len(per_stage) == 5 and len(per_layer) > 26


@pytest.mark.parametrize('depth', [16, 60, 151])
def test_a_depth_that_the_paper_does_not_have_is_an_error(depth):
    with pytest.raises(ValueError, match='one of 18, 34, 50, 101, 152'):
        models.create(model_config(depth=depth))


@settings(deadline=None)
@given(st.integers(-10, 2000))
def test_cifar_depths_are_6n_plus_2(depth):
    if depth >= 8 and depth % 6 == 2:
        n = (depth - 2) // 6
        assert architecture('cifar', depth)[1] == (n, n, n)
    else:
        with pytest.raises(ValueError, match='6n \\+ 2'):
            architecture('cifar', depth)


@pytest.mark.parametrize(('field', 'value'), [
    ('family', 'resnext'), ('shortcut', 'E'), ('stride_in', 'v2'), ('dtype', 'float16'),
    ('num_classes', 0), ('width', 0)])
def test_values_that_do_not_exist_are_named(field, value):
    with pytest.raises(ValueError, match=f'model.{field} must be'):
        models.create(model_config(**{field: value}))


def test_the_plain_twin_lacks_the_shortcuts_and_nothing_else():
    residual = shapes(models.create(model_config()))
    plain = shapes(models.create(model_config(plain=True)))
    missing = paths(residual) - paths(plain)
    assert missing and all('/shortcut/' in path for path in missing)
    assert paths(plain) < paths(residual)


def test_shortcuts_a_b_and_c_project_nowhere_where_the_shape_changes_and_everywhere():
    projections = {
        option: {path.split('/shortcut/')[0] for path in paths(shapes(models.create(
            model_config(shortcut=option)))['params']) if '/shortcut/' in path}
        for option in 'ABC'}
    assert projections == {
        'A': set(),
        'B': {f'stage{i}/block1' for i in (2, 3, 4)},
        'C': {f'stage{i}/{block}' for i in (1, 2, 3, 4) for block in ('block1', 'blocks')}}


def test_option_a_takes_every_second_pixel_and_pads_half_the_channels_on_either_side():
    model = models.create(model_config(family='cifar', depth=8, width=4, shortcut='A',
                                       zero_init_last_gamma=True))
    variables, images = init(model, size=9)
    outputs = features(model, variables, images)
    stage1, stage2 = outputs['stage1'], outputs['stage2']
    # With the last gamma at zero a block is its shortcut, and after a ReLU another changes nothing.
    np.testing.assert_array_equal(stage2[..., 2:6], stage1[:, ::2, ::2])
    assert not stage2[..., :2].any() and not stage2[..., 6:].any()


@pytest.mark.parametrize(('depth', 'channels'), [(18, 8), (50, 32)])
def test_the_stem_may_have_a_width_of_its_own(depth, channels):
    def outputs(**changes):
        model = models.create(model_config(depth=depth, width=8, **changes))
        maps = jax.eval_shape(lambda *args: model.apply(*args, train=False, method='features'),
                              shapes(model), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
        return {stage: maps[stage].shape[-1] for stage in maps}, paths(shapes(model)['params'])

    usual, names = outputs()
    assert outputs(stem_width=8) == (usual, names)
    wide, names_of_wide = outputs(stem_width=12)
    assert (usual['stem'], wide['stem'], wide['stage1']) == (8, 12, channels)
    # Only where the first block now changes the number of channels is there a new projection.
    assert {name.split('/')[2] for name in names_of_wide - names} == (
        {'shortcut'} if depth == 18 else set())


def test_zero_gamma_makes_every_block_the_identity_at_the_start():
    model = one_stage(shortcut='A', zero_init_last_gamma=True)
    variables, images = init(model, size=8)
    outputs = features(model, variables, images)
    np.testing.assert_array_equal(outputs['stem'], outputs['stage1'])
    with pytest.raises(ValueError, match='needs shortcuts'):
        models.create(model_config(plain=True, zero_init_last_gamma=True))


@pytest.mark.parametrize(('stride_in', 'size'), [('v1', 4), ('v1.5', 8)])
def test_v1_strides_on_the_1x1_and_v15_on_the_3x3(stride_in, size):
    model = bottleneck(stride_in=stride_in)
    outputs = jax.eval_shape(lambda *args: model.apply(
        *args, train=False, capture_intermediates=True)[1]['intermediates'],
        shapes(model), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    first = outputs['stage2']['block1']
    assert first['conv1']['__call__'][0].shape[1] == size
    assert first['conv2']['__call__'][0].shape[1] == 4


@pytest.mark.parametrize(('size', 'channels', 'classes'), [(33, 4, 1000), (57, 1, 2)])
def test_any_image_size_channels_and_classes(size, channels, classes):
    model = repeated(basic=False).clone(num_classes=classes, stage_sizes=(1, 1))
    variables, images = init(model, size, channels)
    logits = evaluate(model, variables, images)
    assert logits.shape == (4, classes) and logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    exact, half = (repeated(basic=False, dtype=dtype).clone(stage_sizes=(1, 1))
                   for dtype in ('float32', 'bfloat16'))
    variables, images = init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits = evaluate(half, variables, images)
    assert logits.dtype == jnp.float32
    reference = evaluate(exact, variables, images)
    difference = jnp.abs(logits - reference).max() / jnp.abs(reference).max()
    assert 0 < difference < 0.05


def test_blocks_that_are_stacked_start_from_different_weights():
    params = init(one_stage(), size=8)[0]['params']
    kernels = params['stage1']['blocks']['conv1']['kernel']
    assert kernels.shape == (4, 3, 3, 4, 4)
    assert abs(np.corrcoef(kernels.reshape(4, -1)) - np.eye(4)).max() < 0.4
    assert abs(kernels.std() / np.sqrt(2 / (9 * 4)) - 1) < 0.2


@pytest.mark.parametrize('batch_norm', [False, True])
def test_vgg_gives_logits_averaged_over_a_larger_image(batch_norm):
    model = models.create(model_config(family='vgg', depth=16, width=1, batch_norm=batch_norm)
                          ).clone(stage_sizes=(1,) * 5)
    variables, _ = init(model, 224)
    assert ('batch_stats' in variables) == batch_norm
    image = np.random.default_rng(0).normal(size=(1, 256, 224, 3)).astype(np.float32)
    large = evaluate(model, variables, image)
    assert large.shape == (1, 7) and jnp.isfinite(large).all()
    # Dropout is random in training only.
    train = jax.jit(lambda seed: model.apply(
        variables, image, train=True, mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(seed)})[0])
    drop = [train(seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drop[0], drop[1])
    assert (drop[0] != drop[2]).any()


def test_vgg_refuses_images_below_224_pixels():
    with pytest.raises(ValueError, match='at least 224 pixels'):
        init(models.create(model_config(family='vgg', depth=19, width=1)), 192)
    with pytest.raises(ValueError, match='must be 16 or 19'):
        models.create(model_config(family='vgg', depth=18))
