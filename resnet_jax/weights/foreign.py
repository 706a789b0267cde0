"""What other projects call the tensors of each family of networks.

All formats are first translated to torchvision's names and layouts: conv1, bn1, layer1.0.conv1, …,
fc; convolutions are OIHW, dense layers [outputs, inputs].
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

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
      image_size: of `data`: height and width of the input, and the shorter side before cropping.
      timm: regular expression for timm's architectures that are networks of this family.
      first: torchvision's name of the kernel of the first convolution.
      convention: whether ImageNet's mean and standard deviation are meant where a file is silent.
      assumed: (config.model, whether the stride is given) -> phrases for what names and shapes do
        not show.
      flattened: our modules in front of which torchvision flattens a feature map, channels first.
      idle_biases: (tensors) -> biases that torchvision's networks have and ours do without.
    """

    naming: Callable[[Collection[str]], tuple[Callable[[str], str], str] | None]
    recognises: Callable[[Tensors], bool]
    fields: Callable[[Tensors, Mapping[str, str]], dict[str, Any]]
    tensors_of: Callable[[tuple[str, ...], int, ModelConfig], tuple[str, ...]]
    image_size: tuple[int, int]
    timm: str
    first: str
    convention: bool = True
    assumed: Callable[[ModelConfig, bool], tuple[str, ...]] = lambda config, stride_given: ()
    flattened: tuple[str, ...] = ()
    idle_biases: Callable[[Tensors], dict[str, np.ndarray]] = lambda tensors: {}


FAMILIES: dict[str, Foreign] = {}  # by the names that `config.model.family` takes


def register(name: str, foreign: Foreign) -> None:
    """Makes the names of a family's tensors known."""
    FAMILIES[name] = foreign


def of(config: ModelConfig) -> Foreign:
    """What is known of the family of `config.model`.

    Raises:
      UserError: nothing is.
    """
    if config['family'] not in FAMILIES:
        raise UserError(f'networks of the family {config["family"]} cannot be converted: no other '
                        'project has names for their tensors.')
    return FAMILIES[config['family']]
