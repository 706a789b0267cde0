"""The authors' Caffe models are read as networks that take RGB images."""

import numpy as np
import pytest

from resnet_jax import weights
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.weights import names
from tests.weights import random_weights


@pytest.mark.parametrize(('depth', 'many', 'factor'), [(50, False, 1.0), (101, True, 999.0)])
def test_the_authors_names_sums_and_colours_are_undone(depth, many, factor, tmp_path):
    model = random_weights.fields(depth=depth, width=2)
    tensors = random_weights.tensors(model)
    path = tmp_path / 'ResNet.caffemodel'
    path.write_bytes(random_weights.caffemodel(tensors, 'v1', factor, many=many))
    found = weights.read(path)
    assert found.origin == 'the authors'
    fields = found.config.model
    assert (fields.depth, fields.stride_in, fields.pool_pad) == (depth, 'v1', 'end')
    for name, array in names.to_torch(found.variables, fields).items():
        np.testing.assert_allclose(array, tensors[name], rtol=1e-6, atol=1e-7)
    # Grey levels from 0 to 255, less the mean colour, red first.
    np.testing.assert_allclose(
        found.normalization['mean'] * 255, [123.15, 115.90, 103.06], atol=.01)
    np.testing.assert_allclose(found.normalization['std'], 1 / 255, rtol=1e-6)


def test_the_stride_is_read_from_the_convolutions(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(depth=50, width=2))
    path = tmp_path / 'ResNet.caffemodel'
    path.write_bytes(random_weights.caffemodel(tensors, 'v1.5'))
    assert weights.read(path).config.model.stride_in == 'v1.5'


def test_a_biased_first_convolution_moves_the_mean(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(depth=50, width=2))
    bias = np.float32([.25, -.5])
    path = tmp_path / 'ResNet-50.caffemodel'
    path.write_bytes(random_weights.caffemodel(tensors, conv1_bias=bias))
    found = weights.read(path)
    np.testing.assert_allclose(found.variables['batch_stats']['stem']['norm']['mean'],
                               tensors['bn1.running_mean'] - bias, rtol=1e-6)


@pytest.mark.slow
def test_caffes_network_is_equalled_from_raw_pixels(tmp_path):
    torch_networks = pytest.importorskip(
        'tests.weights.torch_networks', reason='parity needs PyTorch: pip install .[test-torch]')
    torch = torch_networks.torch
    network = torch_networks.hugging_face(50, 'v1', width=4, classes=7)
    network.save_pretrained(tmp_path)
    found = weights.read(tmp_path / 'model.safetensors')
    tensors = names.to_torch(found.variables, found.config.model)
    # As in Caffe: a bias, another pooling, and blue first.
    bias = np.linspace(-1, 1, 4, dtype=np.float32)
    (tmp_path / 'x.caffemodel').write_bytes(
        random_weights.caffemodel(tensors, conv1_bias=bias))
    convolution = network.resnet.embedder.embedder.convolution
    convolution.weight.data = convolution.weight.data.flip(1)
    convolution.bias = torch.nn.Parameter(torch.from_numpy(bias))
    network.resnet.embedder.pooler = torch_networks.CaffePool()
    read = weights.read(tmp_path / 'x.caffemodel')
    read.config.model.unroll = False  # compiles sooner
    ours = Classifier(read.config, read.variables, read.normalization, ())
    for size in ((64, 64), (65, 97)):
        images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
        blue_first = images[..., ::-1] - np.float32([103.06262, 115.90288, 123.15163])
        with torch.no_grad():
            theirs = network(torch_networks.to_torch(blue_first)).logits.numpy()
        assert torch_networks.difference(ours.logits(images), theirs) < 1e-4
