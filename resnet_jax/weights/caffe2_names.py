"""The authors' ResNets as Detectron and detectron2 start from them: MSRA/R-50.pkl and R-101.pkl.

Detectron's script made them of the Caffe models, for Caffe2: the statistics of normalisation are
folded into its scale and offset, and some convolutions have biases.
"""

import re
from collections.abc import Mapping

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.weights.recognise import Named

_NAME = re.compile(
    r'(?:(res_conv1|conv1)|res([2-5])_(\d+)_branch(1|2[abc])|(fc)1000)(_bn)?_([swb])')
EPSILON = np.float32(1e-5)  # of our normalisation; with a variance of 1 - EPSILON it divides by 1


def matches(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of Caffe2's residual networks."""
    return 'res2_0_branch2a_w' in tensors


def named(tensors: Mapping[str, np.ndarray]) -> Named:
    """The tensors under torchvision's names, for images in RGB.

    Raises:
      UserError: one of them is not part of a classifier.
    """
    original = {_torch_name(name): name for name in tensors}
    found = {new: tensors[name] for new, name in original.items()}
    for scale in [name for name in found if _is_norm(name) and name.endswith('.weight')]:
        norm = scale.removesuffix('.weight')
        bias = found.pop(f'{_convolution(norm)}.bias', np.zeros_like(found[scale]))
        found[f'{norm}.running_mean'] = -bias
        found[f'{norm}.running_var'] = np.full_like(bias, 1 - EPSILON)
        for part in ('running_mean', 'running_var'):
            original[f'{norm}.{part}'] = f'{original[scale]} ({part})'
    if found.get('conv1.weight', np.empty(())).ndim != 4:
        raise UserError('this is not a classifier of the authors: it lacks the layer conv1_w.')
    found['conv1.weight'] = found['conv1.weight'][:, ::-1]
    return Named(found, 'Caffe2', original)


def _is_norm(name: str) -> bool:
    return re.search(r'bn\d\.|downsample\.1\.', name) is not None


def _convolution(norm: str) -> str:
    return norm.replace('bn', 'conv').replace('downsample.1', 'downsample.0')


def _torch_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f'{name} is not part of a residual network of the authors; of Detectron, '
                        'only its classifiers can be read.')
    stem, stage, block, branch, head, norm, part = match.groups()
    if head:
        module = 'fc'
    elif stem:
        module = 'bn1' if norm else 'conv1'
    elif branch == '1':
        module = f'layer{int(stage) - 1}.{block}.downsample.{1 if norm else 0}'
    else:
        module = (f'layer{int(stage) - 1}.{block}.{"bn" if norm else "conv"}'
                  f'{"abc".index(branch[1]) + 1}')
    return f'{module}.{"bias" if part == "b" else "weight"}'
