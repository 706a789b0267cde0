"""The residual networks of the paper in plain PyTorch, for the benchmarks to compare with.

The same architectures, shortcuts, strides and initialisation as `resnet_jax.models`; batch
normalisation is PyTorch's own, over the whole batch. Imports nothing from the project.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import functional

IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
            152: (3, 8, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 152)


def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, the channels padded with zeros, half on either side."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x):
        half = self.missing // 2
        return functional.pad(x[:, :, ::self.stride, ::self.stride],
                              (0, 0, 0, 0, half, self.missing - half))


def shortcut(option: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    """What is added to a block's branch (section 3.3)."""
    changes = stride != 1 or inputs != outputs
    if option == 'C' or (option == 'B' and changes):
        return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return PadShortcut(inputs, outputs, stride) if changes else nn.Identity()


class Block(nn.Module):
    """A basic block or a bottleneck (figure 5).

    Args:
      inputs: channels.
      features: filters of the first convolution; a bottleneck's last has four times as many.
      stride: of the first convolution, or of the bottleneck's second with stride_in 'v1.5'.
      option: of the shortcut, 'A', 'B' or 'C'; None: plain.
    """

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool, stride_in: str,
                 option: str | None):
        super().__init__()
        if bottleneck:
            first, second = (stride, 1) if stride_in == 'v1' else (1, stride)
            shapes = [(inputs, features, 1, first), (features, features, 3, second),
                      (features, 4 * features, 1, 1)]
        else:
            shapes = [(inputs, features, 3, stride), (features, features, 3, 1)]
        layers = []
        for shape in shapes:
            layers += [conv(*shape), nn.BatchNorm2d(shape[1]), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.outputs = shapes[-1][1]
        self.shortcut = None if option is None else shortcut(option, inputs, self.outputs, stride)

    def forward(self, x):
        y = self.branch(x)
        return functional.relu(y if self.shortcut is None else y + self.shortcut(x))


FAMILIES = ('cifar', 'imagenet')  # that it has twins of
# Fields of `config.model` that it does not know, and their values in the paper's networks.
WITHOUT = {'deep_stem': False, 'bottleneck': False, 'bottleneck_width': None, 'groups': 1}


class ResNet(nn.Module):
    """A network of `config.model`, whose family is one of `FAMILIES`."""

    def __init__(self, model: Mapping[str, Any], channels: int = 3):
        super().__init__()
        cifar, depth, width = model['family'] == 'cifar', model['depth'], model['width']
        sizes = ((depth - 2) // 6,) * 3 if cifar else IMAGENET[depth]
        bottleneck = not cifar and depth in BOTTLENECK_DEPTHS
        inputs = model['stem_width'] or width
        stem = [conv(channels, inputs, 3 if cifar else 7, 1 if cifar else 2),
                nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
        if not cifar:
            stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*stem)
        blocks = []
        for i, size in enumerate(sizes):
            for j in range(size):
                blocks.append(Block(inputs, width * 2**i, 2 if i and j == 0 else 1, bottleneck,
                                    model['stride_in'],
                                    None if model['plain'] else model['shortcut']))
                inputs = blocks[-1].outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, model['num_classes'])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        """Class scores of images [N, C, H, W]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
