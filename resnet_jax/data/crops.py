"""Crops: which part of an image is seen, as a pure function of the image's size and a key.

A crop is computed without any pixels, before the image is decoded, so that only the necessary part
of the image needs to be decoded. Pixels are cut from it, and coordinates moved, by `Crop`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.decode import Region
from resnet_jax.data.sizes import pair
from resnet_jax.data.types import Tree

ATTEMPTS = 10


class Crop(NamedTuple):
    """What is made of an image, on the host or on the device: the one description of it.

    Attributes:
      region: what is seen, in pixels of the image; what lies outside of the image is zeros.
      size: (height, width) of the result.
      mirrored: whether the result is mirrored left to right.
    """

    region: Region
    size: tuple[int, int]
    mirrored: Any = False  # bool, or a traced one

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest coordinates of boxes in the region, float32 [4] each."""
        left, top, height, width = (
            self.region.left, self.region.top, self.region.height, self.region.width)
        return (np.array([left, top] * 2, np.float32),
                np.array([left + width, top + height] * 2, np.float32))

    def points(self, points: Any) -> Any:
        """Points of the image as points of the result.

        Args:
          points: float [..., 2], (x, y) in continuous pixels: the corner of an image is (0, 0), and
            the centre of its first pixel (0.5, 0.5).

        Returns:
          float32 [..., 2].
        """
        xp = jnp if isinstance(points, jax.Array) else np
        x = (points[..., 0] - self.region.left) * (self.size[1] / self.region.width)
        y = (points[..., 1] - self.region.top) * (self.size[0] / self.region.height)
        x = xp.where(self.mirrored, self.size[1] - x, x)
        return xp.stack([x, y], -1).astype(xp.float32)

    def boxes(self, boxes: Any) -> Any:
        """Boxes of the image as boxes of the result. They are not clipped to it.

        Args:
          boxes: float [..., 4], (x1, y1, x2, y2) in continuous pixels.

        Returns:
          float32 [..., 4], x1 <= x2.
        """
        xp = jnp if isinstance(boxes, jax.Array) else np
        first, second = self.points(boxes[..., :2]), self.points(boxes[..., 2:])
        return xp.concatenate([xp.minimum(first, second), xp.maximum(first, second)], -1)

    def target(self, target: Tree) -> dict[str, Any]:
        """The target with its 'boxes' and 'points' moved; all else is as it was."""
        moves = {'boxes': self.boxes, 'points': self.points}
        return {name: moves[name](value) if name in moves else value
                for name, value in target.items()}


def has_coordinates(target: Tree) -> bool:
    """Whether a crop moves some of a target."""
    return 'boxes' in target or 'points' in target


def generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one training example.

    Args:
      seed: the run's.
      position: of the example in the endless training sequence, step * batch_size + row.
    """
    return np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), position]))


def random_resized_crop(height: int, width: int, rng: np.random.Generator,
                        scale: tuple[float, float], ratio: tuple[float, float]) -> Region:
    """A random share of the area with a random aspect ratio (Szegedy et al., 2015).

    Args:
      height, width: of the image, in pixels.
      rng: the key.
      scale: smallest and largest share of the area.
      ratio: smallest and largest width / height, drawn uniformly in its logarithm.

    Returns:
      A closed region with integer edges. After ten draws that do not fit, the central one with the
      nearest aspect ratio, as in torchvision.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Region(int(top), int(left), h, w, closed=True)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    return Region((height - h) // 2, (width - w) // 2, h, w, closed=True)


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of an image scaled to cover a size, rounded down to pixels."""
    if size[0] * width >= size[1] * height:
        return size[0], int(size[0] * width / height)
    return int(size[1] * height / width), size[1]


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `shorter`; the longer one is rounded down."""
    return covering(height, width, (shorter, shorter))


def enlarged(size: int | tuple[int, int], shorter: int) -> tuple[int, int]:
    """A size of the same shape whose shorter side is `shorter`; the longer one is rounded."""
    sides = pair(size)
    return tuple(shorter if side == min(sides) else round(shorter * side / min(sides))
                 for side in sides)


def scale_jitter(height: int, width: int, rng: np.random.Generator, shorter: tuple[int, int],
                 size: int | tuple[int, int]) -> Region:
    """Scales the image at random, then crops at random (section 3.4).

    For a square, the shorter side of the image gets a random length. Otherwise the image is scaled
    to cover a rectangle of the shape of `size` whose shorter side has that length.

    Args:
      height, width: of the image, in pixels.
      rng: the key.
      shorter: least and greatest random length, both of which occur; the paper's 256 and 480.
      size: of the crop, in pixels of the scaled image; the paper's 224.
    """
    new_height, new_width = covering(height, width, enlarged(
        size, int(rng.integers(shorter[0], shorter[1] + 1))))
    crop_height, crop_width = pair(size)
    top = rng.integers(new_height - crop_height + 1)
    left = rng.integers(new_width - crop_width + 1)
    return _in_original(height, width, new_height, new_width, int(top), int(left), pair(size))


def center_crop(height: int, width: int, shorter: int, size: int | tuple[int, int]) -> Region:
    """Scales the image, then crops the centre: the 1-crop test (section 3.4).

    Args:
      height, width: of the image, in pixels.
      shorter: the shorter side of the scaled image. For a `size` that is not square, the image is
        scaled to cover a rectangle of that shape whose shorter side is `shorter`.
      size: of the crop, in pixels of the scaled image.
    """
    new_height, new_width = covering(height, width, enlarged(size, shorter))
    crop_height, crop_width = pair(size)
    top, left = round((new_height - crop_height) / 2), round((new_width - crop_width) / 2)
    return _in_original(height, width, new_height, new_width, top, left, pair(size))


def _in_original(height, width, new_height, new_width, top, left, size) -> Region:
    """A rectangle of the scaled image, in the pixels of the original."""
    y, x = height / new_height, width / new_width
    return Region(top * y, left * x, size[0] * y, size[1] * x, closed=False)
