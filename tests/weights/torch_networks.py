"""Networks in PyTorch that ours must equal, with random weights and running statistics."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='parity needs PyTorch: pip install .[test-torch]')
transformers = pytest.importorskip(
    'transformers', reason='parity needs transformers: pip install .[test-torch]')

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}


def randomize(network: nn.Module, seed: int) -> nn.Module:
    """Random weights, gammas, betas, means and variances, none of which is left at its default.

    Branches are small beside the shortcuts, so that activations neither vanish nor overflow.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                uniform(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            uniform(module.weight, 0.2, 0.6)
            uniform(module.bias, -0.1, 0.1)
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.5, 1.5)
    return network.eval()


def hugging_face(depth: int, stride_in: str, width: int = 64, classes: int = 1000, seed: int = 0):
    """transformers' ResNet of a depth of the paper."""
    bottleneck = depth >= 50
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=[width * 2**i * (4 if bottleneck else 1)
                                            for i in range(4)],
        depths=DEPTHS[depth], layer_type='bottleneck' if bottleneck else 'basic',
        downsample_in_bottleneck=stride_in == 'v1', num_labels=classes)
    return randomize(transformers.ResNetForImageClassification(config), seed)


class CifarBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        x = x[:, :, ::self.stride, ::self.stride]
        half = self.missing // 2
        return functional.relu(y + functional.pad(x, (0, 0, 0, 0, half, self.missing - half)))


class CifarNet(nn.Module):
    """The CIFAR network of section 4.2 with shortcuts of option A."""

    def __init__(self, depth: int, width: int, classes: int = 10):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for i in range(3):
            outputs = width * 2**i
            blocks = [CifarBlock(inputs if j == 0 else outputs, outputs,
                                 2 if i and j == 0 else 1) for j in range(n)]
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
            inputs = outputs
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class PreActivationUnit(nn.Module):
    """A unit of resnet-pre-act.lua; the first of a stage activates for both of its branches."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, is_first: bool):
        super().__init__()
        layers = ([(inputs, inner, 3, stride), (inner, outputs, 3, 1)] if inner == outputs else
                  [(inputs, inner, 1, stride), (inner, inner, 3, 1), (inner, outputs, 1, 1)])
        self.depth, self.is_first = len(layers), is_first
        for i, (before, after, size, step) in enumerate(layers, 1):
            setattr(self, f'norm{i}', nn.BatchNorm2d(before))
            setattr(self, f'conv{i}', nn.Conv2d(before, after, size, step, size // 2, bias=False))
        self.stride, self.missing = stride, outputs - inputs
        if inner != outputs and is_first:
            self.downsample = nn.Sequential()
            self.downsample.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = functional.relu(self.norm1(x))
        x = y if self.is_first else x
        y = self.conv1(y)
        for i in range(2, self.depth + 1):
            y = getattr(self, f'conv{i}')(functional.relu(getattr(self, f'norm{i}')(y)))
        if hasattr(self, 'downsample'):
            return y + self.downsample(x)
        half = self.missing // 2
        return y + functional.pad(x[:, :, ::self.stride, ::self.stride],
                                  (0, 0, 0, 0, half, self.missing - half))


class PreActivationNet(nn.Module):
    """The CIFAR networks of "Identity Mappings", under the names that timm has for ImageNet's.

    With bottlenecks shortcuts are projections, otherwise of option A.
    """

    def __init__(self, depth: int, width: int, bottleneck: bool, classes: int = 10):
        super().__init__()
        times, n = (4, (depth - 2) // 9) if bottleneck else (1, (depth - 2) // 6)
        self.stem = nn.Sequential()
        self.stem.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stages, inputs = nn.Sequential(), width
        for i in range(3):
            stage, inner = nn.Module(), width * 2**i
            stage.blocks = nn.Sequential(*(PreActivationUnit(
                inputs if j == 0 else inner * times, inner, inner * times,
                2 if i and j == 0 else 1, j == 0) for j in range(n)))
            stage.forward = stage.blocks.forward
            self.stages.append(stage)
            inputs = inner * times
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Module()
        self.head.fc = nn.Conv2d(inputs, classes, 1)

    def forward(self, x):
        x = functional.relu(self.norm(self.stages(self.stem(x))))
        return self.head.fc(x.mean((2, 3), keepdim=True)).flatten(1)


class CaffePool(nn.Module):
    """Max-pooling as the authors' Caffe has it: no padding, and the size rounded up."""

    def forward(self, x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)


def images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 [N, H, W, C], standard normal."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(x: np.ndarray):
    """NHWC to an NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def to_numpy(x) -> np.ndarray:
    """An NCHW tensor to NHWC."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def difference(x, y) -> float:
    """The norm of the difference over the norm of the second."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape, (x.shape, y.shape)
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))
