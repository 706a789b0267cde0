"""Python interface to trained localizers; see `resnet_jax.load`."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from resnet_jax import models
from resnet_jax.data import Item, image_size
from resnet_jax.data.crops import Crop
from resnet_jax.data.transforms import EvalTransform, image_shape
from resnet_jax.errors import UserError
from resnet_jax.models.localizer import Localizer as Model
from resnet_jax.models.localizer_rcnn import LocalizerRCNN
from resnet_jax.tasks.classification import classifier
from resnet_jax.tasks.classification.prediction import best
from resnet_jax.tasks.detection.draw import draw
from resnet_jax.tasks.localization import metrics, rcnn
from resnet_jax.tasks.network import Network, normalized
from resnet_jax.tasks.task import Answer, Predictor, get
from resnet_jax.weights import Weights

BATCH_SIZE = 64  # images that a device computes at once


class Prediction(NamedTuple):
    """What a localizer says of images, for each class.

    Attributes:
      probabilities: float32 [N, classes].
      boxes: float32 [N, classes, 4], (x1, y1, x2, y2) in continuous pixels of the image.
      scores: float32 [N, classes], probabilities that the box is on an object of the class.

    With an R-CNN, boxes and scores of the most probable classes are its own, and those of the
    others the proposal network's.
    """

    probabilities: jax.Array | np.ndarray
    boxes: jax.Array | np.ndarray
    scores: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Localizer(Network):
    """A trained localizer, made by `resnet_jax.load`; see `Network` for its features.

    Attributes:
      classes: the names of the classes, by number.
    """

    classes: tuple[str, ...]

    def predict(self, images: Sequence[np.ndarray]) -> Prediction:
        """Classifies and locates the main objects of images of any size, uint8 [H, W, C]."""
        loaded = [self.load(Item(image, {}, f'image {i}')) for i, image in enumerate(images)]
        parts = [self.predict_loaded(jax.tree.map(
            lambda *rows: np.stack(rows), *loaded[start:start + BATCH_SIZE]))
            for start in range(0, len(loaded), BATCH_SIZE)]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    @functools.cached_property
    def transform(self) -> EvalTransform:
        """How images are cropped: as in training, at their centre."""
        data = self.config.data
        size = image_size(data)
        return EvalTransform(size, data.eval_resize or min(size), data.channels)

    def load(self, item: Item) -> dict[str, np.ndarray]:
        """An image as `predict_loaded` takes it, without the leading axis.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        return loaded(item, self.transform.crop(item), self.transform.pixels(item))

    def predict_loaded(self, batch: Mapping[str, np.ndarray],
                       top: int = metrics.TOP_K) -> Prediction:
        """Locates objects in cropped images.

        Args:
          batch: see `loaded`, with a leading axis N.
          top: see `locate`.
        """
        count = len(batch['image'])
        padded = 1 << (count - 1).bit_length()  # few sizes to compile for
        batch = jax.tree.map(
            lambda x: np.concatenate([x, np.repeat(x[-1:], padded - count, 0)]), dict(batch))
        found = self._locate(self._on_device, batch, top=top)
        return jax.tree.map(lambda x: np.asarray(x)[:count], found)

    @functools.cached_property
    def _locate(self):
        return jax.jit(functools.partial(locate, self.model), static_argnames='top')


def loaded(item: Item, crop: Crop, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What `locate` needs of an image.

    Args:
      item: the image.
      crop: what is seen of it.
      pixels: uint8 [H, W, C], of the crop.

    Returns:
      'image'; 'frame' float32 [4], where the whole image lies on the crop; and 'original' int32
      [2], height and width of the image.
    """
    height, width = image_shape(item)
    return {'image': pixels, 'frame': crop.boxes(np.array([0, 0, width, height], np.float32)),
            'original': np.array([height, width], np.int32)}


def locate(model: Model, weights: tuple[Any, Any], batch: Mapping[str, jax.Array], *,
           top: int = metrics.TOP_K) -> Prediction:
    """The probability and the best box of every class, in pixels of the images. Pure.

    Args:
      model: the network.
      weights: (variables, normalisation).
      batch: see `loaded`, with a leading axis N. If it has 'label' int32 [N], an R-CNN judges the
        proposals of this class alone.
      top: otherwise it judges those of so many of the most probable classes.
    """
    variables, normalization = weights
    images, frames = normalized(batch['image'], normalization), batch['frame']

    def run(module):
        features = module.last_map(images, train=False)
        return features, module.classify(features), module.locate(features, None, frames)

    features, logits, found = nn.apply(run, model)(variables)
    if isinstance(model, LocalizerRCNN):
        classes = (batch['label'][:, None] if 'label' in batch
                   else jax.lax.top_k(logits, min(top, model.num_classes))[1])
        found = rcnn.replaced(found, classes, rcnn.judged(
            model, variables, images, features, classes, frames))
    start, size = frames[:, :2], frames[:, 2:] - frames[:, :2]
    scale = batch['original'][:, ::-1] / size
    corners = (found.boxes.reshape(*found.scores.shape, 2, 2) - start[:, None, None]) * (
        scale[:, None, None])
    return Prediction(jax.nn.softmax(logits), corners.reshape(found.boxes.shape),
                      jax.nn.sigmoid(found.scores))


def load(weights: Weights, path: pathlib.Path) -> Localizer:
    """Makes a localizer from the weights that were read from a path; see `Task.load`.

    Raises:
      UserError: its config.json describes no localizer, or classes.txt does not fit.
    """
    try:
        get(weights.config.task).create_model(weights.config)
    except models.ConfigError as error:
        raise UserError(f'the config.json of {path} describes no localizer: {error}') from error
    return Localizer(weights.config, weights.variables, weights.normalization,
                     classifier.load(weights, path).classes)


def predictor(networks: Sequence[Localizer], flags: Mapping[str, Any]) -> Predictor:
    """Classifies and locates the main objects of image files; see `Task.predictor`.

    Args:
      networks: one.
      flags: 'top', the number of classes to name.

    Raises:
      UserError: there are several networks.
    """
    if len(networks) > 1:
        raise UserError('localizers predict one at a time; give one --checkpoint.')
    network = networks[0]

    def answer(batch: Mapping[str, np.ndarray]) -> list[Answer]:
        return [_answer(Prediction(*rows), network.classes, flags['top'])
                for rows in zip(*network.predict_loaded(batch, flags['top']), strict=True)]

    def picture(image: np.ndarray, answer: Answer) -> Image.Image:
        return draw(image, _Drawn(answer.fields['classes'][:1]), network.classes)

    return Predictor(network.load, answer, picture)


class _Drawn:
    """Named boxes, as `draw` takes them."""

    def __init__(self, found: Sequence[Mapping[str, Any]]):
        self.xyxy = np.array([one['box'] for one in found], np.float32)
        self.scores = np.array([one['probability'] for one in found], np.float32)
        self.class_id = np.array([one['index'] for one in found], np.int32)
        self.mask = None


def _answer(found: Prediction, classes: Sequence[str], top: int) -> Answer:
    guesses = [{**guess, 'box': [round(float(x), 2) for x in found.boxes[guess['index']]],
                'score': float(found.scores[guess['index']])}
               for guess in best(np.asarray(found.probabilities), classes, top)]
    return Answer({'classes': guesses}, [
        f'{100 * guess["probability"]:6.2f} %  {guess["name"]}  at '
        + ', '.join(f'{x:.1f}' for x in guess['box']) for guess in guesses])
