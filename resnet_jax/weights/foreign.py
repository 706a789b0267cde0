"""What other projects call the tensors of each family of networks.

All formats are first translated to torchvision's names and layouts: conv1, bn1, layer1.0.conv1, …,
fc; convolutions are OIHW, dense layers [outputs, inputs].
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from resnet_jax import models
from resnet_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]
ModelConfig = Mapping[str, Any]  # the fields of `config.model`

# torchvision's names of the arrays of a layer.
PARTS = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
         'var': 'running_var'}


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What is known of a family in other projects.

    Attributes:
      naming: (names of a file) -> how its names become torchvision's and whose they are, or None:
        these are not the names of this family.
      recognises: (tensors under torchvision's names) -> whether they are a network of this kind.
      fields: (tensors, the names that they have in their file) -> the fields of `config.model` that
        names and shapes decide, 'family' among them. Raises UserError with what is different from
        the paper's networks.
      tensors_of: (module, blocks, config.model) -> torchvision's names of the modules that one of
        our modules is made of: one, or one for each block of a stack.
      image_size: of `data`: size of the input, and the shorter side before cropping or None.
      timm: regular expression for timm's architectures that are networks of this family.
      first: torchvision's names of the kernel of the first convolution, of which a network has one.
      convention: whether ImageNet's mean and standard deviation are meant where a file is silent.
      assumed: (config.model, whether the stride is given) -> phrases for what names and shapes do
        not show.
      flattened: our modules in front of which torchvision flattens a feature map, channels first.
      transposed: our modules that are transposed convolutions, with inputs before outputs there.
      pointwise: our dense layers that are 1x1 convolutions there.
      create: (config.model) -> the network whose variables these are.
      rolled: by our modules, how many of a layer's outputs, which are last here, come first there.
      classes: (number of classes) -> their names, if this number stands for certain ones.
      title: what follows the name of the network in a description.
      config: fields besides `model` that describe such networks, by path.
      unpacked: (tensors) -> the tensors that make the network, for images with red first, and the
        settings that the others give, see `resnet_jax.weights.read`.
      idle_biases: (tensors) -> biases that torchvision's networks have and ours do without.
    """

    naming: Callable[[Collection[str]], tuple[Callable[[str], str], str] | None]
    recognises: Callable[[Tensors], bool]
    fields: Callable[[Tensors, Mapping[str, str]], dict[str, Any]]
    tensors_of: Callable[[tuple[str, ...], int, ModelConfig], tuple[str, ...]]
    image_size: tuple[Any, int | None]
    timm: str
    first: tuple[str, ...]
    convention: bool = True
    assumed: Callable[[ModelConfig, bool], tuple[str, ...]] = lambda config, stride_given: ()
    flattened: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()
    create: Callable[[ModelConfig], nn.Module] = models.create
    rolled: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: Callable[[int], tuple[str, ...] | None] = lambda count: None
    title: str = ''
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unpacked: Callable[[Tensors], tuple[Tensors, dict[str, Any]]] = lambda tensors: (tensors, {})
    idle_biases: Callable[[Tensors], dict[str, np.ndarray]] = lambda tensors: {}


PYRAMID = 'fpn'  # detectors of this kind have names of their own
# By `config.model.family`, for torchvision's detectors PYRAMID, and for others names of their own.
FAMILIES: dict[str, Foreign] = {}


def register(name: str, foreign: Foreign) -> None:
    """Makes the names of a family's tensors known."""
    FAMILIES[name] = foreign


def of(config: ModelConfig) -> Foreign:
    """What is known of the family of `config.model`, or of a detector with a feature pyramid.

    Raises:
      UserError: nothing is.
    """
    name = PYRAMID if config['detector']['kind'] == PYRAMID else config['family']
    if name not in FAMILIES:
        raise UserError(f'networks of the family {name} cannot be converted: no other project has '
                        'names for their tensors.')
    return FAMILIES[name]
