"""Names the features, such as squeeze-and-excitation, that the paper's networks do not have."""

import re
from collections.abc import Mapping

import numpy as np

from resnet_jax.models.blocks import BottleneckBlock

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
    convolutions = [tensors.get(f'layer1.0.conv{n}.weight', np.empty(())) for n in (1, 2, 3)]
    if any(convolution.ndim != 4 for convolution in convolutions[:2]):
        return []
    (first, second, third), name = convolutions, original['layer1.0.conv1.weight']
    filters, inputs = len(first), second.shape[1]
    if 0 < inputs < filters and filters % inputs == 0:
        return [f'grouped convolutions, {filters // inputs} groups of {inputs} channels '
                f'({original["layer1.0.conv2.weight"]}), as in ResNeXt']
    outputs, usual = ((len(second), len(second)) if third.ndim != 4 else
                      (len(third), len(third) // BottleneckBlock.expansion))
    if filters != usual:
        return [f'{"wider" if filters > usual else "narrower"} blocks, {filters} filters ({name}) '
                f'for {outputs} outputs, where the paper has {usual}']
    return []


def _first(tensors: Mapping[str, np.ndarray], pattern: re.Pattern) -> str | None:
    return next((name for name in tensors if pattern.search(name)), None)
