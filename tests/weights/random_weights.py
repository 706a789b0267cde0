"""Random tensors under torchvision's names, without PyTorch; and Caffe files that hold them."""

import re

import numpy as np

from resnet_jax import config as config_lib
from resnet_jax.weights import caffe, names


def fields(**changes):
    """`config.model` of a narrow network."""
    config = config_lib.default()
    config.model.update({'family': 'imagenet', 'depth': 18, 'num_classes': 7, 'width': 8,
                         'stride_in': 'v1.5', **changes})
    return config.model


def tensors(model, channels: int = 3, known=None) -> dict[str, np.ndarray]:
    """float32, for images of this many channels; running variances are positive.

    Args:
      model: `config.model`.
      channels: of the images.
      known: whose names the tensors get, see `names.leaves`.
    """
    rng = np.random.default_rng(0)
    found = {}
    for leaf in names.leaves(model, channels, known):
        for name in leaf.tensors:
            shape = leaf.torch_shape()
            if name.endswith('running_var'):
                found[name] = rng.uniform(0.5, 1.5, shape)
            elif len(shape) == 1:
                found[name] = rng.uniform(-0.5, 0.5, shape)
            else:
                found[name] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return {name: array.astype(np.float32) for name, array in found.items()}


def caffemodel(found: dict[str, np.ndarray], stride_in: str = 'v1', factor: float = 4.0,
               conv1_bias: np.ndarray | None = None, many: bool = False) -> bytes:
    """The authors' form of a ResNet: blue first, sums instead of means, scales of their own.

    Args:
      found: under torchvision's names.
      stride_in: written into the convolutions.
      factor: what the stored means and variances are to be divided by.
      conv1_bias: of the first convolution.
      many: name blocks a, b1, b2, … instead of a, b, c, ….
    """
    net = caffe.message_class('NetParameter')(name='ResNet')

    def add(name, kind, *blobs):
        layer = net.layer.add(name=name, type=kind)
        for array in blobs:
            blob = layer.blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data.extend(array.ravel().tolist())
        return layer

    def add_norm(name, prefix):
        parts = [found[f'{prefix}.{part}'] for part in ('running_mean', 'running_var')]
        add(f'bn{name}', 'BatchNorm', *(x * np.float32(factor) for x in parts),
            np.array([factor], np.float32))
        add(f'scale{name}', 'Scale', found[f'{prefix}.weight'], found[f'{prefix}.bias'])

    net.layer.add(name='data', type='Input')
    bias = [] if conv1_bias is None else [conv1_bias]
    add('conv1', 'Convolution', found['conv1.weight'][:, ::-1], *bias)
    add_norm('_conv1', 'bn1')
    for prefix in sorted({re.match(r'layer\d\.\d+', n)[0] for n in found if n[:5] == 'layer'}):
        stage, block = int(prefix[5]), int(prefix.split('.')[1])
        letter = 'a' if block == 0 else f'b{block}' if many else 'abcdefgh'[block]
        branches = {'1': ('downsample.0', 'downsample.1')}
        branches |= {f'2{x}': (f'conv{i}', f'bn{i}') for i, x in ((1, 'a'), (2, 'b'), (3, 'c'))}
        for branch, (conv, norm) in branches.items():
            if f'{prefix}.{conv}.weight' not in found:
                continue
            name = f'{stage + 1}{letter}_branch{branch}'
            layer = add(f'res{name}', 'Convolution', found[f'{prefix}.{conv}.weight'])
            strided = block == 0 and stage > 1 and (
                branch == '1' or branch == ('2a' if stride_in == 'v1' else '2b'))
            layer.convolution_param.stride.append(2 if strided else 1)
            add_norm(name, f'{prefix}.{norm}')
    add('fc1000', 'InnerProduct', found['fc.weight'], found['fc.bias'])
    return net.SerializeToString()
