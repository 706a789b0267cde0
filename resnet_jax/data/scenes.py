"""Made-up scenes for detection: scikit-learn's handwritten digits on textured canvases.

Nothing is downloaded, and a scene is a pure function of its split and its index. Training scenes
show the 1500 training digits of `resnet_jax.data.digits`, test scenes the other 297.
"""

import functools
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import masks
from resnet_jax.data.digits import digits
from resnet_jax.data.sources import ArraySource, digest

SIDE = 64  # pixels of a scene
SCENES = {'train': 4096, 'test': 256}
OBJECTS = (4, 8)  # the least and the most objects in a scene
SIDES = (9.0, 22.0)  # heights of digits in pixels, before the ink's margins are cut off
STRETCH = 0.12  # of the width, either way
INK = 0.4  # least opacity of a pixel within the box
OVERLAP = 0.25  # the most that two boxes share of the smaller one
NOISE = 0.03  # standard deviation, in units of the full range
OCTAVES = 5
CONTRAST = (0.3, 0.55)  # between ink and canvas, in units of the full range
ATTEMPTS = 20  # at a place for a digit
FORMAT = 1  # to be raised whenever scenes change


class Scene(NamedTuple):
    """An image and its objects.

    Attributes:
      image: uint8 [H, W, 1].
      boxes: float32 [n, 4], around the pixels with ink.
      classes: int32 [n].
      instances: uint8 [H, W], the number from 1 of the object that each pixel shows, the last one
        that was drawn there; 0 where there is none.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    instances: np.ndarray


def create(config: ConfigDict, split: str) -> ArraySource:
    """Opens a split; see `resnet_jax.data.registry`. Reads `model.detector.masks`."""
    return scenes(split, bool(config.model.detector.masks))


def count_classes(config: ConfigDict) -> int:
    """Ten digits."""
    del config
    return 10


@functools.cache
def scenes(split: str, with_masks: bool = False) -> ArraySource:
    """The scenes of a split: images uint8 [N, 64, 64, 1], with targets as in `data.objects`."""
    images, labels = ink(split)
    made = [scene(images, labels, generator(split, i), SIDE, OBJECTS)
            for i in range(SCENES[split])]
    return ObjectArrays([x.image for x in made], [x.boxes for x in made],
                        [x.classes for x in made], f'scenes/{split}',
                        [str(i) for i in range(10)],
                        [x.instances for x in made] if with_masks else None)


class ObjectArrays(ArraySource):
    """Images of one size in memory, with objects; see `resnet_jax.data.objects`."""

    def __init__(self, images, boxes, classes, name: str, class_names, instances=None):
        """Takes a list of each: uint8 [H, W, C], float32 [n, 4], int32 [n] and uint8 [H, W].

        The last ones are as in `Scene`; with them, targets have masks.
        """
        self._boxes, self._classes, self._instances = boxes, classes, instances
        self.most_objects = max(map(len, boxes))
        images = np.stack(images)
        super().__init__(
            images, {'id': np.arange(len(images), dtype=np.int32)}, name,
            num_classes=len(class_names), class_names=class_names,
            fingerprint=digest(name, FORMAT, images, np.concatenate(boxes),
                               np.concatenate(classes)))

    def __getitem__(self, index: int):
        item, boxes = super().__getitem__(index), self._boxes[index]
        target = item.target | {
            'boxes': boxes, 'classes': self._classes[index],
            'ignore': np.zeros(len(boxes), bool),
            'areas': (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])}
        if self._instances is not None:
            target['masks'] = masks.of_instances(
                self._instances[index], np.arange(1, len(boxes) + 1))
        return item._replace(target=target)


def generator(split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene."""
    return np.random.Generator(np.random.PCG64([list(SCENES).index(split), index]))


def ink(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: opacity float32 [N, 8, 8] from 0 to 1, and labels int32 [N]."""
    source = digits(split)
    return source.images[..., 0].astype(np.float32) / 255, source.labels


def scene(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, side: int,
          objects: tuple[int, int], middle: bool = False) -> Scene:
    """Makes a scene.

    Args:
      images, labels: see `ink`.
      rng: the key.
      side: of the image, in pixels.
      objects: the least and the most digits.
      middle: the first digit lies in the middle of the image, give or take two pixels; others may
        be cut off by its edge, and do not count as objects.
    """
    level = rng.uniform(0.2, 0.8)
    image = level + texture(rng, side)
    boxes, classes, instances = [], [], np.zeros((side, side), np.uint8)
    for place in range(rng.integers(objects[0], objects[1] + 1)):
        which = rng.integers(len(images))
        height = np.exp(rng.uniform(*np.log(SIDES)))
        width = height * rng.uniform(1 - STRETCH, 1 + STRETCH)
        opacity = resize(images[which], max(4, round(height)), max(4, round(width)))
        opacity = np.minimum(1, 1.3 * opacity)
        hull = tight(opacity)
        contrast = rng.uniform(*CONTRAST)
        lighter = level < 0.35 or (level <= 0.65 and rng.integers(2) == 1)
        value = level + contrast if lighter else level - contrast
        free = _find_place(rng, hull, opacity.shape, side, boxes, middle, place)
        if free is None:
            continue
        seen, part = _place(image, opacity, *free)
        seen += part * (value - seen)
        _place(instances, opacity, *free)[0][part > INK] = len(boxes) + 1
        boxes.append(hull + np.array([free[1], free[0]] * 2, np.float32))
        classes.append(labels[which])
    image += rng.normal(0, NOISE, image.shape)
    count = 1 if middle else len(boxes)
    return Scene(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)[:, :, None],
                 np.array(boxes[:count], np.float32), np.array(classes[:count], np.int32),
                 instances)


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth noise of several octaves, float64 [side, side], standard deviation about 0.1."""
    total = np.zeros((side, side))
    for octave in range(OCTAVES):
        cells = min(side, 2 ** (octave + 1))
        total += resize(rng.normal(0, 0.12 * 0.6**octave, (cells + 1, cells + 1)), side, side)
    return total


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation, [h, w] -> [height, width]; beyond the edge the edge is repeated."""
    return _weights(image.shape[0], height) @ image @ _weights(image.shape[1], width).T


@functools.cache
def _weights(size: int, new_size: int) -> np.ndarray:
    place = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size)))


def tight(opacity: np.ndarray) -> np.ndarray:
    """The box around the pixels with ink: float32 [4]."""
    rows, columns = (np.flatnonzero((opacity > INK).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _find_place(rng, hull, shape, side, boxes, middle, place) -> tuple[int, int] | None:
    """Row and column of a digit's upper left corner, where it covers little of the others."""
    for _ in range(ATTEMPTS):
        if middle and place == 0:
            centre = side / 2 + rng.integers(-2, 3, 2)
            row = round(centre[0] - (hull[1] + hull[3]) / 2)
            column = round(centre[1] - (hull[0] + hull[2]) / 2)
        elif middle:
            row, column = (int(rng.integers(1 - n, side)) for n in shape)
        else:
            row, column = (int(rng.integers(side - n + 1)) for n in shape)
        moved = hull + np.array([column, row] * 2)
        if all(_shared(moved, box) <= OVERLAP for box in boxes):
            return row, column
    return None


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """What two boxes have in common, as a share of the smaller one."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))
    return float(np.prod(np.maximum(sides, 0)) / smaller)


def _place(image: np.ndarray, opacity: np.ndarray, row: int,
           column: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image below a digit, a view, and the part of the digit within the image."""
    top, left = max(0, row), max(0, column)
    part = opacity[top - row:image.shape[0] - row, left - column:image.shape[1] - column]
    return image[top:top + part.shape[0], left:left + part.shape[1]], part
