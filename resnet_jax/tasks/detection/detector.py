"""Python interface to trained detectors; see `resnet_jax.load`."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from resnet_jax import models
from resnet_jax.data import Item
from resnet_jax.data.masks import decode
from resnet_jax.data.objects import Canvas, canvas_of
from resnet_jax.data.transforms import image_shape
from resnet_jax.errors import UserError
from resnet_jax.models import rcnn
from resnet_jax.tasks.detection import inference
from resnet_jax.tasks.detection.draw import draw
from resnet_jax.tasks.detection.paste import in_threads, paste_all
from resnet_jax.tasks.detection.truth import Found
from resnet_jax.tasks.network import Network, normalized
from resnet_jax.tasks.task import Answer, Predictor
from resnet_jax.weights import Weights, stored, to_torchvision

BATCH_SIZE = 8  # images that a device computes at once


class Prediction(NamedTuple):
    """The objects detected in an image, the best first; the names are those of supervision.

    Attributes:
      xyxy: float32 [n, 4], (x1, y1, x2, y2) in continuous pixels of the image.
      scores: float32 [n], probabilities.
      class_id: int32 [n].
      mask: bool [n, H, W], the pixels of each object; None without a mask branch.
    """

    xyxy: np.ndarray
    scores: np.ndarray
    class_id: np.ndarray
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detector(Network):
    """A trained detector, made by `resnet_jax.load`; see `Network` for its features.

    Attributes:
      classes: the names of the classes, by number.
    """

    classes: tuple[str, ...]

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Detects objects in images of any size.

        Args:
          images: uint8 [H, W, C] for one image; or a list of such, or [N, H, W, C].

        Returns:
          A Prediction for one image, otherwise a list of them.

        Raises:
          ValueError: an image is not uint8, or has another number of channels.
        """
        alone = isinstance(images, np.ndarray) and images.ndim == 3
        if alone:
            images = images[None]
        for image in images:
            if np.ndim(image) != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8 or (
                    image.shape[-1] < self.config.data.channels):
                raise ValueError(f'images must be uint8 [H, W, {self.config.data.channels}], got '
                                 f'{getattr(image, "dtype", type(image))} {np.shape(image)}.')
        loaded = [self.load(Item(image, {}, f'image {i}')) for i, image in enumerate(images)]
        found: dict[int, Prediction] = {}
        for shape in {image['image'].shape for image in loaded}:
            rows = [i for i, image in enumerate(loaded) if image['image'].shape == shape]
            for start in range(0, len(rows), BATCH_SIZE):
                part = rows[start:start + BATCH_SIZE]
                batch = jax.tree.map(lambda *parts: np.stack(parts), *(loaded[i] for i in part))
                found |= {i: _prediction(image, loaded[i]['original'])
                          for i, image in zip(part, self.find(batch), strict=True)}
        return found[0] if alone else [found[i] for i in range(len(loaded))]

    def draw(self, image: np.ndarray, least_score: float = 0.5) -> Image.Image:
        """Detects objects in an image, uint8 [H, W, C], and draws them; notebooks show the result.

        Args:
          image: see `predict`.
          least_score: objects with a lower score are left out.
        """
        return draw(image, self.predict(image), self.classes, least_score)

    @functools.cached_property
    def canvas(self) -> Canvas:
        """The canvases that images are put on."""
        return canvas_of(self.config.data)

    def load(self, item: Item) -> dict[str, np.ndarray]:
        """An image as `find` takes it, without the leading axis.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        image, size = self.canvas.pixels(item)
        return {'image': image, 'size': size, 'original': np.array(image_shape(item), np.int32)}

    def find(self, batch: Mapping[str, np.ndarray]) -> list[Found]:
        """Detects objects in images on canvases, in pixels of the images as they were.

        Args:
          batch: 'image' uint8 [N, H, W, C]; 'size' and 'original' int32 [N, 2], height and width of
            each image on its canvas and as it was.
        """
        count = len(batch['image'])
        padded = 1 << (count - 1).bit_length()  # few sizes to compile for
        batch = jax.tree.map(
            lambda x: np.concatenate([x, np.repeat(x[-1:], padded - count, 0)]), dict(batch))
        found = jax.device_get(self._detect(self._on_device, batch))

        def of_image(i: int) -> Found:
            valid = found.valid[i]
            boxes = found.boxes[i][valid]
            masks = None if found.masks is None else paste_all(
                found.masks[i][valid], boxes, batch['original'][i])
            return Found(boxes, found.classes[i][valid], found.scores[i][valid], masks)

        return in_threads(of_image, range(count))

    @functools.cached_property
    def _detect(self):
        return jax.jit(functools.partial(detect, self.model))


def detect(model: rcnn.FasterRCNN, weights: tuple[Any, Any],
           batch: Mapping[str, jax.Array]) -> rcnn.Detections:
    """Detections in pixels of the images as they were; see `Detector.find`. Pure."""
    variables, normalization = weights
    images = inference.blanked(normalized(batch['image'], normalization), batch['size'])
    found = inference.detect(model, variables, images, batch['size'])
    return found._replace(boxes=inference.to_original(
        found.boxes, batch['size'], batch['original']))


def load(weights: Weights, path: pathlib.Path) -> Detector:
    """Makes a detector from the weights that were read from a path; see `Task.load`.

    Raises:
      UserError: its config.json describes no detector, or classes.txt does not fit.
    """
    try:
        rcnn.create(weights.config)
    except models.ConfigError as error:
        raise UserError(f'the config.json of {path} describes no detector: {error}') from error
    count = weights.config.model.num_classes
    return Detector(weights.config, weights.variables, weights.normalization,
                    stored.read_classes(path, count) or tuple(map(str, range(count))))


def safetensors(network: Detector) -> bytes:
    """The contents of a .safetensors file under torchvision's names; see `weights.to_torchvision`.

    Raises:
      UserError: torchvision has no such detector.
    """
    if network.config.model.detector.kind != 'fpn':
        raise UserError('torchvision has no names for a detector without a feature pyramid; write '
                        'a .stablehlo file, or train with model.detector.kind=fpn.')
    return to_torchvision(network)


def predictor(networks: Sequence[Detector], flags: Mapping[str, Any]) -> Predictor:
    """Detects objects in image files; see `Task.predictor`.

    Args:
      networks: one.
      flags: 'min_score', below which objects are left out.

    Raises:
      UserError: there are several networks.
    """
    if len(networks) > 1:
        raise UserError('detectors predict one at a time; give one --checkpoint.')
    network, least = networks[0], flags['min_score']

    def answer(batch: Mapping[str, np.ndarray]) -> list[Answer]:
        return [_answer(found, network.classes, least) for found in network.find(batch)]

    def picture(image: np.ndarray, answer: Answer) -> Image.Image:
        objects = answer.fields['detections']
        return draw(image, Prediction(
            np.array([found['box'] for found in objects], np.float32).reshape(-1, 4),
            np.array([found['score'] for found in objects], np.float32),
            np.array([found['index'] for found in objects], np.int32),
            np.array([decode(found['mask']) for found in objects])
            if objects and 'mask' in objects[0] else None), network.classes)

    return Predictor(network.load, answer, picture)


def _prediction(found: Found, size: np.ndarray) -> Prediction:
    masks = None
    if found.masks is not None:
        masks = np.array([decode(mask) for mask in found.masks], bool).reshape(-1, *size)
    return Prediction(found.boxes, found.scores, found.classes, masks)


def _answer(found: Found, classes: Sequence[str], least_score: float) -> Answer:
    shapes = [{}] * len(found.boxes) if found.masks is None else [{'mask': x} for x in found.masks]
    objects = [{'box': [round(float(x), 2) for x in box], 'name': classes[index],
                'index': int(index), 'score': float(score), **shape}
               for box, index, score, shape in zip(*found[:3], shapes, strict=True)
               if score >= least_score]
    lines = [f'{100 * found["score"]:6.2f} %  {found["name"]}  at '
             + ', '.join(f'{x:.1f}' for x in found['box']) for found in objects]
    return Answer({'detections': objects}, lines or ['no object'])
