"""Predicts the most probable classes of images of any size; see `predict`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data import Item
from resnet_jax.data.sizes import eval_resize, eval_size
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.task import Answer, Predictor

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow


def predictor(networks: Sequence[Classifier], flags: Mapping[str, Any]) -> Predictor:
    """Averages the probabilities of some networks; see `Task.predictor`.

    Args:
      networks: those after the first see the images that the first one takes.
      flags: 'top', the number of classes to name.

    Raises:
      UserError: the networks know different classes.
    """
    classes, config = class_names(networks), networks[0].config.data
    transform = EvalTransform(eval_size(config), eval_resize(config), kernel=config.eval_filter)

    def load(item: Item) -> np.ndarray:
        image = transform.pixels(item)
        if config.channels == 3:
            return image
        return np.round(image.astype(np.float32) @ GREY).astype(np.uint8)[:, :, None]

    def answer(images: np.ndarray) -> list[Answer]:
        probabilities = np.mean([network.predict(images) for network in networks], 0)
        return [_answer(best(row, classes, flags['top'])) for row in probabilities]

    return Predictor(load, answer)


def class_names(networks: Sequence[Classifier]) -> Sequence[str]:
    """The names of the classes that all networks have; those without names have numbers.

    Raises:
      UserError: the networks know different classes.
    """
    numbers = tuple(map(str, range(len(networks[0].classes))))
    names = {network.classes for network in networks} - {numbers}
    if len(names) > 1 or len({len(network.classes) for network in networks}) > 1:
        raise UserError('the checkpoints are not an ensemble: their classes differ.')
    return names.pop() if names else numbers


def best(probabilities: np.ndarray, classes: Sequence[str], count: int) -> list[dict]:
    """The most probable classes: 'index', 'name' and 'probability'."""
    order = probabilities.argsort(kind='stable')[::-1][:count]
    return [{'index': int(i), 'name': classes[i], 'probability': float(probabilities[i])}
            for i in order]


def _answer(guesses: list[dict]) -> Answer:
    return Answer({'classes': guesses}, [
        f'{100 * guess["probability"]:6.2f} %  {guess["name"]}' for guess in guesses])
