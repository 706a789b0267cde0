"""Yahoo's Open-NSFW in plain NumPy, as its file describes it, without this project's code."""

from collections.abc import Mapping

import numpy as np


def features(tensors: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """The feature maps of a bottleneck network with folded batch normalisation.

    Args:
      tensors: under torchvision's names, OIHW.
      images: uint8 [N, H, W, 3], red first.

    Returns:
      float32 [N, h, w, channels] for 'stem', 'stage1', …, and [N, channels] for 'pool'.
    """
    x = images[..., ::-1] - np.float32([104, 117, 123])
    x = np.maximum(_normalised(tensors, 'bn1', _conv(x, tensors['conv1.weight'], 2)), 0)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    found = {'stem': _windows(padded, 3, 2).max((-2, -1))}
    x = found['stem']
    for stage in range(1, 5):
        block = 0
        while f'layer{stage}.{block}.conv1.weight' in tensors:
            x = _bottleneck(tensors, f'layer{stage}.{block}.', x, 2 if stage > 1 > block else 1)
            block += 1
        found[f'stage{stage}'] = x
    return found | {'pool': x.mean((1, 2))}


def _bottleneck(tensors, prefix, x, stride):
    y = x
    for i in (1, 2, 3):
        y = _conv(y, tensors[f'{prefix}conv{i}.weight'], stride if i == 1 else 1)
        y = _normalised(tensors, f'{prefix}bn{i}', y)
        y = np.maximum(y, 0) if i < 3 else y
    if f'{prefix}downsample.0.weight' in tensors:
        x = _conv(x, tensors[f'{prefix}downsample.0.weight'], stride)
        x = _normalised(tensors, f'{prefix}downsample.1', x)
    return np.maximum(x + y, 0)


def _normalised(tensors, name, x):
    return ((x - tensors[f'{name}.running_mean']) * tensors[f'{name}.weight']
            + tensors[f'{name}.bias'])


def _conv(x, weight, stride):
    size = weight.shape[-1]
    x = np.pad(x, ((0, 0), *2 * (((size - 1) // 2,) * 2,), (0, 0)))
    return np.tensordot(_windows(x, size, stride), weight, ((3, 4, 5), (1, 2, 3)))


def _windows(x, size, stride):
    """[N, H, W, C] -> [N, h, w, C, size, size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
