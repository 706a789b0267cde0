"""Names the features, such as squeeze-and-excitation, that the paper's networks do not have."""

import re
from collections.abc import Mapping

import numpy as np

_ATTENTION = re.compile(r'^layer\d+\.\d+\.(?:se|se_module|eca|attn|cbam)\.')


def differences(tensors: Mapping[str, np.ndarray], original: Mapping[str, str]) -> list[str]:
    """How a network differs from every one of the paper, each with a tensor that shows it.

    Args:
      tensors: of a residual network, under torchvision's names.
      original: the names that the tensors have in their file.

    Returns:
      Phrases that continue 'the network has'; none if no known difference is found.
    """
    found = []
    if name := _first(tensors, _ATTENTION):
        found.append(f'squeeze-and-excitation or other attention in its blocks ({original[name]})')
    if 'bn1.weight' in tensors and not any(name.endswith('running_mean') for name in tensors):
        found.append('normalisation without running statistics, such as group normalisation '
                     f'({original["bn1.weight"]})')
    return found + _widths(tensors, original)


def _widths(tensors: Mapping[str, np.ndarray], original: Mapping[str, str]) -> list[str]:
    """Groups of channels, and widths, that blocks of two convolutions do not have."""
    first, second = (tensors.get(f'layer1.0.conv{n}.weight', np.empty(())) for n in (1, 2))
    if 'layer1.0.conv3.weight' in tensors or first.ndim != 4 or second.ndim != 4:
        return []
    filters, inputs, name = len(first), second.shape[1], original['layer1.0.conv1.weight']
    if 0 < inputs < filters and filters % inputs == 0:
        return [f'grouped convolutions, {filters // inputs} groups of {inputs} channels '
                f'({original["layer1.0.conv2.weight"]}), in blocks without a bottleneck']
    if filters != len(second):
        return [f'{"wider" if filters > len(second) else "narrower"} blocks, {filters} filters '
                f'({name}) for {len(second)} outputs, where the paper has {len(second)}']
    return []


def _first(tensors: Mapping[str, np.ndarray], pattern: re.Pattern) -> str | None:
    return next((name for name in tensors if pattern.search(name)), None)
