"""Published networks whose tensors do not show how they are to be used."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.weights.foreign import Tensors


@dataclasses.dataclass(frozen=True)
class Published:
    """A network, and what is known of it beyond its tensors.

    Attributes:
      title: what it is called.
      fields: of `config.model`, by which it is recognised.
      model: further fields of `config.model`.
      mean: in red, green and blue, in grey levels; there is nothing else to normalise.
    """

    title: str
    fields: Mapping[str, Any]
    model: Mapping[str, Any]
    mean: tuple[float, float, float]

    def settings(self) -> dict[str, Any]:
        """The fields and the normalisation, as `resnet_jax.weights.read` takes them."""
        return {'model': self.model, 'mean': np.array(self.mean) / 255, 'std': np.full(3, 1 / 255)}

    def assumed(self) -> str:
        """A phrase for `Weights.assumed`."""
        fields = ', '.join(f'{name}={value}' for name, value in self.model.items())
        return f'{self.title}, with {fields} and images in which blue comes first'


def rgb(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors of a network that sees blue first, for images in RGB."""
    return {**tensors, 'conv1.weight': tensors['conv1.weight'][:, ::-1]}


_NETWORKS = (
    # https://github.com/yahoo/open_nsfw
    Published("Yahoo's Open-NSFW",
              {'family': 'imagenet', 'depth': 50, 'width': 32, 'stem_width': 64, 'num_classes': 2,
               'shortcut': 'B', 'bn_epsilon': 0.0},
              {'stride_in': 'v1', 'pool_pad': 'end'}, (123.0, 117.0, 104.0)),
)


def known(fields: Mapping[str, Any]) -> Published | None:
    """The published network of these fields, see `Foreign.fields`, if it is known."""
    return next((network for network in _NETWORKS if network.fields == fields), None)
