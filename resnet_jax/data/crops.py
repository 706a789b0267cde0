"""Random and central crops: regions as pure functions of the image's size and a key.

A crop is computed without any pixels, before the image is decoded, so that only the necessary part
of the image needs to be decoded.
"""

import math

import numpy as np

from resnet_jax.data.decode import Region

ATTEMPTS = 10


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


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `shorter`; the longer one is rounded down."""
    short = min(height, width)
    return tuple(shorter if x == short else int(shorter * x / short) for x in (height, width))


def scale_jitter(height: int, width: int, rng: np.random.Generator, shorter: tuple[int, int],
                 size: int) -> Region:
    """Resizes the shorter side to a random length, then crops a random square (section 3.4).

    Args:
      height, width: of the image, in pixels.
      rng: the key.
      shorter: least and greatest length of the shorter side, both drawn; the paper's 256 and 480.
      size: side of the square, in pixels of the resized image; the paper's 224.
    """
    new_height, new_width = resized(height, width, int(rng.integers(shorter[0], shorter[1] + 1)))
    top, left = rng.integers(new_height - size + 1), rng.integers(new_width - size + 1)
    return _square(height, width, new_height, new_width, int(top), int(left), size)


def center_crop(height: int, width: int, shorter: int, size: int) -> Region:
    """Resizes the shorter side, then crops the central square: the 1-crop test (section 3.4)."""
    new_height, new_width = resized(height, width, shorter)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return _square(height, width, new_height, new_width, top, left, size)


def _square(height, width, new_height, new_width, top, left, size) -> Region:
    """A square of the resized image, in the pixels of the original."""
    y, x = height / new_height, width / new_width
    return Region(top * y, left * x, size * y, size * x, closed=False)
