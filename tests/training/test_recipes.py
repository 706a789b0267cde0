"""What recipes are made of, against timm and PyTorch over 50 steps, to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.data import augment, randaugment
from resnet_jax.models import depth
from resnet_jax.tasks.classification.metrics import binary_cross_entropy, targets
from resnet_jax.training import loop, optimizers, schedules
from resnet_jax.training.writers import read_rows
from tests import jitted, tiny

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
STEPS, TOLERANCE = 50, 1e-5
SHAPES = {'block1': {'kernel': (3, 3, 2, 4), 'bias': (4,)},
          'blocks': {'kernel': (2, 3, 3, 4, 4), 'scale': (2, 4)}}
LAYERS = [('block1', 'kernel', ...), ('block1', 'bias', ...),
          *[('blocks', name, i) for name in ('kernel', 'scale') for i in range(2)]]


def trees():
    """The parameters, then the gradients of 50 steps; some gradients are large enough to clip."""
    rng = np.random.default_rng(0)
    for i in range(STEPS + 1):
        yield {layer: {name: jnp.asarray(rng.normal(size=shape) * (0.5 + i % 3), jnp.float32)
                       for name, shape in leaves.items()} for layer, leaves in SHAPES.items()}


def rate(step):
    return 8e-3 * (1 + np.cos(np.pi * step / STEPS)) / 2


def ours(**fields):
    config = config_lib.default()
    config.optimizer.update(fields)
    optimizer, (params, *gradients) = optimizers.create(config), trees()
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params, learning_rate=jnp.float32(rate(step)))
        params = jax.tree.map(jnp.add, params, updates)
        yield [np.asarray(params[layer][name][i]) for layer, name, i in LAYERS]


def theirs(create, decay, decays_all=False):
    params, *gradients = trees()
    leaves = [torch.nn.Parameter(torch.tensor(np.array(params[layer][name][i])))
              for layer, name, i in LAYERS]
    kernels = [leaf for leaf, (_, name, _) in zip(leaves, LAYERS, strict=True)
               if decays_all or name == 'kernel']
    others = [leaf for leaf in leaves if not any(leaf is kernel for kernel in kernels)]
    optimizer = create([{'params': kernels, 'weight_decay': decay},
                        *([{'params': others, 'weight_decay': 0.0}] if others else [])])
    for step, gradient in enumerate(gradients):
        for group in optimizer.param_groups:
            group['lr'] = rate(step)
        for leaf, (layer, name, i) in zip(leaves, LAYERS, strict=True):
            leaf.grad = torch.tensor(np.array(gradient[layer][name][i]))
        optimizer.step()
        yield [leaf.detach().numpy().copy() for leaf in leaves]


def assert_equal_over_all_steps(one, other):
    steps = 0
    for a, b in zip(one, other, strict=True):
        steps += 1
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)
    assert steps == STEPS


def test_lamb_is_timms_layer_by_layer_also_where_layers_are_stacked():
    from timm.optim import Lamb
    assert_equal_over_all_steps(
        ours(name='lamb', weight_decay=0.02, decay_bn_and_bias=False, clip_norm=1.0),
        theirs(lambda groups: Lamb(groups, lr=1.0), 0.02))


def test_optimizers_of_optax_by_name_are_those_of_pytorch_and_timm():
    from timm.optim import Lion
    assert_equal_over_all_steps(
        ours(name='adamax', weight_decay=0.1, arguments=(('b1', 0.8),)),
        theirs(lambda groups: torch.optim.Adamax(groups, betas=(0.8, 0.999)), 0.1, True))
    assert_equal_over_all_steps(
        ours(name='lion', weight_decay=0.1, decay_bn_and_bias=False, arguments=(('b2', 0.98),)),
        theirs(lambda groups: Lion(groups, lr=1.0, betas=(0.9, 0.98)), 0.1))


def test_an_old_config_of_adamw_keeps_its_arguments():
    stored = config_lib.leaves(config_lib.default())
    del stored['optimizer.arguments']
    stored |= {'optimizer.name': 'adamw', 'optimizer.adamw_b1': 0.9, 'optimizer.adamw_b2': 0.99}
    fields, unknown = config_lib.upgrade(stored)
    assert (fields['optimizer.arguments'], unknown) == ([['b2', 0.99]], [])


def test_warmup_may_begin_at_a_learning_rate():
    config = config_lib.default()
    config.num_steps = 10
    config.schedule.update(name='constant', learning_rate=3.2, warmup='linear', warmup_steps=4,
                           warmup_from=0.1)
    schedule = schedules.create(config)
    got = [float(schedule.update({}, jnp.int32(step), 0.0)[1]) for step in range(5)]
    np.testing.assert_allclose(got, [0.875, 1.65, 2.425, 3.2, 3.2], rtol=1e-6)


mix = jax.jit(augment.mix, static_argnums=(2, 3))


def mixed(step, mixup_alpha=0.4, cutmix_alpha=1.0):
    """A batch before and after mixing, on the device."""
    rng = np.random.default_rng(step)
    batch = {'image': jnp.asarray(rng.normal(size=(8, 12, 10, 3)), jnp.float32),
             'label': jnp.asarray(rng.integers(0, 5, 8), jnp.int32)}
    return batch, mix(batch, jax.random.key(step), mixup_alpha, cutmix_alpha)


def test_mixup_and_cutmix_are_timms_pairwise(monkeypatch):
    """Timm gets our weights and rectangles, and must make of them the same pixels and targets."""
    from timm.data import mixup
    order = [0, 2, 4, 6, 7, 5, 3, 1]  # timm pairs the first image with the last
    seen = set()
    for step in range(STEPS):
        batch, got = mixed(step)
        weights, cuts, boxes = [], [], {}
        for i in range(4):
            share = np.asarray((got['image'] == batch['image'][2 * i + 1])[2 * i].all(-1))
            lam = float(got['mix_weight'][2 * i])
            ys, xs = np.nonzero(share)
            cuts.append(len(ys) > 0 or lam == 1)
            seen.add(cuts[-1])
            weights.append(0.5 if cuts[-1] and lam < 1 else lam)
            boxes[i] = (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) if len(ys) else (0, 0, 0, 0)
        queue = [boxes[i] for i in range(4) if cuts[i] and weights[i] != 1]

        def rectangle(shape, lam, queue=queue, **_):
            yl, yh, xl, xh = box = queue.pop(0)
            return box, 1 - (yh - yl) * (xh - xl) / (shape[-2] * shape[-1])

        monkeypatch.setattr(mixup, 'cutmix_bbox_and_lam', rectangle)
        timms = mixup.Mixup(mode='pair', num_classes=5, label_smoothing=0.1)
        monkeypatch.setattr(timms, '_params_per_elem', lambda n, w=weights, c=cuts: (
            np.array(w, np.float32), np.array(c)))
        images, wanted = timms(
            torch.tensor(np.array(batch['image'])[order].transpose(0, 3, 1, 2)),
            torch.tensor(np.array(batch['label'])[order].astype(np.int64)))
        np.testing.assert_allclose(np.asarray(got['image'])[order].transpose(0, 3, 1, 2), images,
                                   atol=TOLERANCE)
        np.testing.assert_allclose(np.asarray(targets(got, 5, 0.1))[order], wanted, atol=TOLERANCE)
    assert seen == {True, False}


@pytest.mark.parametrize('threshold', [None, 0.2])
def test_binary_cross_entropy_and_its_gradient_are_timms(threshold):
    from timm.data.mixup import mixup_target
    from timm.loss import BinaryCrossEntropy

    @jax.jit
    @jax.value_and_grad
    def mean(logits, batch):
        return binary_cross_entropy(logits, targets(batch, 5, 0.1), threshold).mean()

    for step in range(STEPS):
        _, batch = mixed(step)
        batch = batch | {'mix_label': batch['label'][::-1], 'mix_weight': jnp.concatenate(
            [batch['mix_weight'][:4], batch['mix_weight'][:4][::-1]])}
        logits = np.random.default_rng(step).normal(size=(8, 5)).astype(np.float32) * 5
        value, gradient = mean(jnp.asarray(logits), batch)
        x = torch.tensor(logits, requires_grad=True)
        wanted = mixup_target(torch.tensor(np.array(batch['label']).astype(np.int64)), 5,
                              torch.tensor(np.array(batch['mix_weight']))[:, None], 0.1)
        loss = BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold)(x, wanted)
        loss.backward()
        np.testing.assert_allclose(value, loss.item(), rtol=TOLERANCE)
        np.testing.assert_allclose(gradient, x.grad, atol=TOLERANCE)


def test_stochastic_depth_is_timms_with_the_same_draws(monkeypatch):
    from timm.layers import drop

    class Block:
        def make_rng(self, name):
            assert name == depth.STREAM
            return self.key

    kept = 0
    for step in range(STEPS):
        block, x = Block(), np.random.default_rng(step).normal(size=(16, 2, 2, 3))
        block.key = jax.random.key(step)
        got = np.asarray(depth.drop_branch(block, jnp.asarray(x, jnp.float32), 0.3, train=True))
        mask = (got != 0).any((1, 2, 3))
        kept += mask.sum()
        monkeypatch.setattr(torch.Tensor, 'bernoulli_', lambda self, p, mask=mask: self.copy_(
            torch.tensor(mask, dtype=self.dtype).reshape(self.shape)))
        np.testing.assert_allclose(got, drop.drop_path(torch.tensor(x).float(), 0.3, True),
                                   rtol=TOLERANCE)
    assert abs(kept / (16 * STEPS) - 0.7) < 0.05  # three standard deviations


def test_the_rates_of_the_blocks_are_timms():
    network = timm.create_model('resnet26', drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0)
             for i in range(1, 5) for block in getattr(network, f'layer{i}')]
    np.testing.assert_allclose(depth.rates(0.4, 8), rates, rtol=1e-6)
    assert depth.rates(0.0, 8) is None


@pytest.mark.parametrize('unroll', [True, False])
def test_a_block_is_left_out_image_by_image(unroll):
    config = tiny.config().model
    config.update(depth=20, num_classes=10, unroll=unroll)
    images = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    plain = models.create(config)
    variables = jitted.init(plain, jax.random.key(1), images, train=False)
    config.stochastic_depth = 0.5
    network = models.create(config)

    def outputs(network, key):
        return jitted.apply(network, variables, images, train=True, mutable='batch_stats',
                            rngs={depth.STREAM: jax.random.key(key)})[0]

    np.testing.assert_array_equal(jitted.apply(network, variables, images, train=False),
                                  jitted.apply(plain, variables, images, train=False))
    assert jax.tree.structure(jax.eval_shape(lambda: network.init(
        jax.random.key(1), images, train=False))) == jax.tree.structure(variables)
    np.testing.assert_array_equal(outputs(network, 0), outputs(network, 0))
    assert (outputs(network, 0) != outputs(network, 1)).any()


@pytest.mark.parametrize('name', randaugment.OPERATIONS)
def test_operations_of_randaugment_are_timms_pixel_by_pixel(monkeypatch, name):
    from timm.data import auto_augment
    timms = {'auto_contrast': 'AutoContrast', 'posterize': 'PosterizeIncreasing',
             'solarize': 'SolarizeIncreasing', 'solarize_add': 'SolarizeAdd', 'shear_x': 'ShearX',
             'shear_y': 'ShearY', 'translate_x': 'TranslateXRel', 'translate_y': 'TranslateYRel',
             **{key: f'{key.title()}Increasing' for key in (
                 'color', 'contrast', 'brightness', 'sharpness')}}.get(name, name.title())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
    for level in (0, 2.5, 6, 6.3, *([] if name == 'posterize' else [10])):  # Pillow refuses 0 bits
        for sign in (-1, 1):
            for kernel, resample in randaugment.KERNELS.items():
                operation = auto_augment.AugmentOp(timms, 1.0, level, {
                    'img_mean': randaugment.FILL, 'interpolation': resample})
                monkeypatch.setattr(auto_augment.random, 'random', lambda s=sign: 0.5 - 0.4 * s)
                np.testing.assert_array_equal(
                    randaugment.apply(image, name, level, sign, kernel), operation(image))
    assert set(auto_augment._RAND_INCREASING_TRANSFORMS) >= {timms}
    assert len(auto_augment._RAND_INCREASING_TRANSFORMS) == len(randaugment.OPERATIONS)


@pytest.mark.slow
def test_a_run_with_all_of_it_learns_and_evaluates_at_another_size(tmp_path):
    config = tiny.config()
    config.num_steps = 20
    config.eval.every_steps = 20
    config.model.stochastic_depth = 0.2
    config.data.update(mixup_alpha=0.1, cutmix_alpha=1.0, eval_size=12, eval_crop_share=0.95,
                       eval_filter='bicubic', train_filter='random', train_crop='random_resized',
                       normalization='per_channel')
    config.loss.update(name='binary', target_threshold=0.2)
    config.optimizer.update(name='lamb', weight_decay=0.02, clip_norm=1.0)
    config.schedule.learning_rate = 0.02
    loop.train(config, tmp_path)
    rows = read_rows(tmp_path / 'metrics.jsonl')
    losses = [row['train/loss'] for row in rows if 'train/loss' in row]
    assert losses[-1] < 0.7 * losses[0] < 0.7
    assert [row['eval/count'] for row in rows if 'eval/count' in row] == [297]
