"""ResNeXt, wide, pre-activation and D networks compute what torchvision's and timm's do."""

import jax
import numpy as np
import pytest

from resnet_jax import models, weights
from resnet_jax.weights import names
from tests.weights.torch_networks import (
    PreActivationNet,
    difference,
    images,
    randomize,
    to_torch,
    torch,
)

torchvision = pytest.importorskip(
    'torchvision', reason='parity needs torchvision: pip install .[test-detection]')
timm = pytest.importorskip('timm', reason='parity needs timm: pip install .[test-torch]')

from timm.layers import BatchNormAct2d, create_conv2d  # noqa: E402
from timm.models import resnet, resnetv2  # noqa: E402

pytestmark = pytest.mark.slow

NARROW = {'num_classes': 7, 'layers': (3, 4, 6, 3), 'channels': (8, 16, 32, 64)}
D = {'stem_type': 'deep', 'stem_width': 4, 'avg_down': True}


def narrow(block, **fields):
    return resnet.ResNet(block, **NARROW | fields)


def narrow_v2(**fields):
    return resnetv2.ResNetV2(**NARROW | fields | {
        'channels': (32, 64, 128, 256), 'stem_chs': 8, 'conv_layer': create_conv2d,
        'norm_layer': BatchNormAct2d})


# The network, and how it is recognised.
NETWORKS = {
    'ResNeXt-50 8x4d': (
        lambda: narrow(resnet.Bottleneck, cardinality=8, base_width=32),
        {'depth': 50, 'width': 8, 'groups': 8, 'bottleneck_width': 32, 'stem_width': 64}),
    'Wide ResNet-50-2': (
        lambda: narrow(resnet.Bottleneck, base_width=128),
        {'depth': 50, 'groups': 1, 'bottleneck_width': 16}),
    'ResNet-34-D': (
        lambda: narrow(resnet.BasicBlock, **D),
        {'depth': 34, 'deep_stem': True, 'shortcut': 'D', 'stem_width': None}),
    'ResNeXt-50-D 4x2d': (
        lambda: narrow(resnet.Bottleneck, cardinality=4, base_width=16, **D | {'stem_width': 6}),
        {'deep_stem': True, 'shortcut': 'D', 'stem_width': 12, 'groups': 4}),
    'ResNet-50 v2': (narrow_v2, {'family': 'imagenet_v2', 'shortcut': 'B', 'width': 8}),
}
FULL = {
    'resnext50_32x4d': 25_028_904, 'resnext101_32x8d': 88_791_336, 'wide_resnet50_2': 68_883_240,
    'wide_resnet101_2': 126_886_696, 'resnet50d': 25_576_264, 'resnetv2_50': 25_549_352,
}


def written(network, path):
    """The tensors of a PyTorch network, stored as PyTorch does."""
    tensors = {name: value for name, value in network.state_dict().items()
               if not name.endswith('num_batches_tracked')}
    torch.save(tensors, path)
    return {name: value.numpy() for name, value in tensors.items()}


def assert_same(network, path, title, shape, gradients=True, **given):
    """That a file of the network's is recognised, computes the same, and is written again."""
    theirs = written(network, path)
    found = weights.read(path, **given)
    assert found.describe().startswith(f'{title}, ')
    for name, array in names.to_torch(found.variables, found.config.model).items():
        np.testing.assert_array_equal(array, theirs.pop(name))
    assert not theirs

    found.config.model.unroll = False  # compiles sooner
    model, x = models.create(found.config.model), images(shape)
    with torch.no_grad():
        expected = network(to_torch(x)).numpy()
    logits = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(
        found.variables, x)
    assert difference(logits, expected) < 1e-4
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    if gradients:
        assert gradient_difference(network, found, x) < 1e-3
    return found.config.model


def gradient_difference(network, found, x):
    """Of all gradients of a sum of the logits with random weights, relative."""
    model = models.create(found.config.model)
    chosen = np.random.default_rng(1).normal(size=(len(x), found.config.model.num_classes))
    network.zero_grad()
    (network(to_torch(x)) * torch.from_numpy(chosen)).sum().backward()
    theirs = {name: p.grad.numpy() for name, p in network.named_parameters()}

    def loss(params):
        variables = {**found.variables, 'params': params}
        return (model.apply(variables, x, train=False) * chosen.astype(np.float32)).sum()

    ours = names.to_torch({'params': jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(
        found.variables['params']))}, found.config.model)
    assert ours.keys() == theirs.keys()
    return difference(*(np.concatenate([grads[name].ravel() for name in ours])
                        for grads in (ours, theirs)))


@pytest.mark.parametrize('title', NETWORKS)
def test_narrow_networks_equal_timms_and_go_back_bit_for_bit(title, tmp_path):
    create, fields = NETWORKS[title]
    # An odd size: averages of 2x2 pixels have less to average at the ends.
    model = assert_same(randomize(create(), 0), tmp_path / 'n.pth', title, (2, 72, 56, 3))
    assert {field: model[field] for field in fields} == fields


@pytest.mark.parametrize('name', FULL)
def test_whole_networks_equal_torchvisions_and_timms(name, tmp_path):
    library = torchvision.models if hasattr(torchvision.models, name) else timm
    network = (getattr(library, name)() if library is not timm else timm.create_model(name))
    assert sum(p.numel() for p in network.parameters()) == FULL[name]
    found = assert_same(randomize(network, 1), tmp_path / 'n.pth', {
        'resnext50_32x4d': 'ResNeXt-50 32x4d', 'resnext101_32x8d': 'ResNeXt-101 32x8d',
        'wide_resnet50_2': 'Wide ResNet-50-2', 'wide_resnet101_2': 'Wide ResNet-101-2',
        'resnet50d': 'ResNet-50-D', 'resnetv2_50': 'ResNet-50 v2'}[name],
        (1, 64, 64, 3), gradients=False)
    assert models.named(name) == models.create(found).clone(unroll=True)


@pytest.mark.parametrize(('depth', 'bottleneck', 'title'), [
    (20, False, 'ResNet-20 v2'), (29, True, 'ResNet-29 v2')])
def test_pre_activation_for_cifar_equals_its_authors_code(depth, bottleneck, title, tmp_path):
    network = randomize(PreActivationNet(depth, 4, bottleneck), 2)
    model = assert_same(network, tmp_path / 'n.pth', title, (2, 32, 32, 3), stride_in='v1',
                        mean=(0, 0, 0), std=(1, 1, 1))
    assert (model.family, model.bottleneck) == ('cifar_v2', bottleneck)
    assert model.shortcut == ('B' if bottleneck else 'A')
