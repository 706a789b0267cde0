"""Python interface to trained classifiers; see `resnet_jax.load`."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from resnet_jax import models
from resnet_jax.data.classes import imagenet_classes
from resnet_jax.errors import UserError
from resnet_jax.tasks.network import Network, outputs
from resnet_jax.weights import Weights, stored


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Classifier(Network):
    """A trained classifier, made by `resnet_jax.load`; see `Network` for its images and features.

    Attributes:
      classes: the names of the classes in label order.
      named: whether these are stored with the weights; otherwise they are ImageNet's, of a network
        of 1000 classes, or numbers.
    """

    classes: tuple[str, ...]
    named: bool = False

    def predict(self, images: Any) -> np.ndarray:
        """The probability of each class: float32 [N, classes], or [classes] for one image."""
        return self.apply(self._probabilities, images)

    def logits(self, images: Any) -> np.ndarray:
        """The scores before the softmax: float32 [N, classes], or [classes] for one image."""
        return self.outputs(images)

    @functools.cached_property
    def _probabilities(self):
        return jax.jit(lambda weights, images: jax.nn.softmax(outputs(self.model, weights, images)))


def load(weights: Weights, path: pathlib.Path) -> Classifier:
    """Makes a classifier from the weights that were read from a path; see `Task.load`.

    Raises:
      UserError: its config.json describes no network, or classes.txt does not fit.
    """
    try:
        models.create(weights.config.model)
    except models.ConfigError as error:
        raise UserError(f'the config.json of {path} describes no network: {error}') from error
    count = weights.config.model.num_classes
    classes = names = stored.read_classes(path, count)
    if classes is None:
        classes = tuple(imagenet_classes() if count == 1000 else map(str, range(count)))
    return Classifier(weights.config, weights.variables, weights.normalization, classes,
                      names is not None)
