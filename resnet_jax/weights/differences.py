"""Names the features, such as squeeze-and-excitation, that the paper's networks do not have."""

import re
from collections.abc import Mapping

import numpy as np

_DEEP_STEM = re.compile(r'^conv1\.\d+\.weight$')
_ATTENTION = re.compile(r'^layer\d+\.\d+\.(?:se|se_module|eca|attn|cbam)\.')
_AVERAGED = re.compile(r'^layer\d+\.\d+\.downsample\.1\.weight$')


def differences(tensors: Mapping[str, np.ndarray], original: Mapping[str, str]) -> list[str]:
    """How a network differs from every one of the paper, each with a tensor that shows it.

    Args:
      tensors: of a residual network, under torchvision's names.
      original: the names that the tensors have in their file.

    Returns:
      Phrases that continue 'the network has'; none if no known difference is found.
    """
    found = []
    if name := _first(tensors, _DEEP_STEM):
        found.append(f'a deep stem, several convolutions ({original[name]}) in place of one')
    if name := _first(tensors, _ATTENTION):
        found.append(f'squeeze-and-excitation or other attention in its blocks ({original[name]})')
    name = _first(tensors, _AVERAGED)
    if name and tensors[name].ndim == 4:
        found.append('average pooling in front of the convolutions of its shortcuts '
                     f'({original[name]})')
    if 'bn1.weight' in tensors and not any(name.endswith('running_mean') for name in tensors):
        found.append('normalisation without running statistics, such as group normalisation '
                     f'({original["bn1.weight"]})')
    return found + _widths(tensors, original)


def _widths(tensors: Mapping[str, np.ndarray], original: Mapping[str, str]) -> list[str]:
    """Groups of channels, and blocks that are wider or narrower than the paper's."""
    stem, first, second = (tensors.get(name, np.empty(())) for name in (
        'bn1.weight', 'layer1.0.conv1.weight', 'layer1.0.conv2.weight'))
    if stem.ndim != 1 or first.ndim != 4 or second.ndim != 4:
        return []
    width, filters, inputs = len(stem), len(first), second.shape[1]
    if 0 < inputs < filters and filters % inputs == 0:
        return [f'grouped convolutions, {filters // inputs} groups of {inputs} channels '
                f'({original["layer1.0.conv2.weight"]}), as in ResNeXt']
    if filters != width:
        return [f'{"wider" if filters > width else "narrower"} blocks, {filters} filters '
                f'({original["layer1.0.conv1.weight"]}) behind a stem of {width}, where the '
                f'paper has {width}']
    return []


def _first(tensors: Mapping[str, np.ndarray], pattern: re.Pattern) -> str | None:
    return next((name for name in tensors if pattern.search(name)), None)
