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
