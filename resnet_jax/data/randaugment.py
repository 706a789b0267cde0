"""RandAugment (Cubuk et al., 2020), as in timm: random operations, on the host.

The operations and their ranges are those of timm's `rand-…-inc1`, with which "ResNet strikes back"
was trained: all of them grow stronger with the magnitude.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
PROBABILITY = 0.5  # of each operation
FILL = (124, 116, 104)  # ImageNet's mean, where pixels come from outside
KERNELS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
SOLARIZED_BELOW = 128
LEAST_ENHANCEMENT = 0.1


def _affine(image, matrix, resample):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)


def _posterize(image, bits):
    mask = 256 - 2**(8 - bits)  # Pillow refuses 0 bits
    return image.point([i & mask for i in range(256)] * 3)


def _solarize_add(image, amount, _):
    table = [min(255, i + int(amount)) if i < SOLARIZED_BELOW else i for i in range(256)]
    return image.point(table * 3)


def _enhance(kind):
    return lambda image, a, _: kind(image).enhance(max(LEAST_ENHANCEMENT, 1 + a))


# Name: (amount at the greatest magnitude, whether its sign is random, the operation on (image,
# amount, filter)).
OPERATIONS = {
    'auto_contrast': (0, False, lambda image, *_: ImageOps.autocontrast(image)),
    'equalize': (0, False, lambda image, *_: ImageOps.equalize(image)),
    'invert': (0, False, lambda image, *_: ImageOps.invert(image)),
    'rotate': (30, True, lambda image, a, f: image.rotate(a, f, fillcolor=FILL)),
    'posterize': (4, False, lambda image, a, _: _posterize(image, 4 - int(a))),
    'solarize': (256, False, lambda image, a, _: ImageOps.solarize(image, 256 - int(a))),
    'solarize_add': (110, False, _solarize_add),
    'color': (0.9, True, _enhance(ImageEnhance.Color)),
    'contrast': (0.9, True, _enhance(ImageEnhance.Contrast)),
    'brightness': (0.9, True, _enhance(ImageEnhance.Brightness)),
    'sharpness': (0.9, True, _enhance(ImageEnhance.Sharpness)),
    'shear_x': (0.3, True, lambda image, a, f: _affine(image, (1, a, 0, 0, 1, 0), f)),
    'shear_y': (0.3, True, lambda image, a, f: _affine(image, (1, 0, 0, a, 1, 0), f)),
    'translate_x': (0.45, True, lambda image, a, f: _affine(
        image, (1, 0, a * image.width, 0, 1, 0), f)),
    'translate_y': (0.45, True, lambda image, a, f: _affine(
        image, (1, 0, 0, 0, 1, a * image.height), f)),
}


def rand_augment(image: np.ndarray, rng: np.random.Generator, layers: int, magnitude: float,
                 noise: float, kernels: Sequence[str]) -> np.ndarray:
    """Chooses `layers` operations uniformly, and applies each with probability 1/2.

    Args:
      image: uint8 [H, W, 3].
      rng: the key.
      layers: operations, one after the other.
      magnitude: the mean of theirs, from 0 to 10.
      noise: its standard deviation; magnitudes beyond the range are clipped.
      kernels: 'bilinear', 'bicubic' or both, of which each operation that moves pixels draws one.

    Returns:
      uint8 [H, W, 3]. Pixels that come from outside are grey.
    """
    pillow, names = Image.fromarray(image), tuple(OPERATIONS)
    for _ in range(layers):
        name = names[rng.integers(len(names))]
        if rng.random() < PROBABILITY:
            level = min(max(rng.normal(magnitude, noise), 0), MAX_MAGNITUDE)
            sign = 1 if rng.integers(2) else -1
            kernel = kernels[rng.integers(len(kernels))]
            pillow = apply(pillow, name, level, sign, kernel)
    return np.asarray(pillow)


def apply(image: Image.Image, name: str, magnitude: float, sign: int, kernel: str) -> Image.Image:
    """One of the OPERATIONS; those without a direction ignore the sign."""
    greatest, signed, operation = OPERATIONS[name]
    amount = magnitude / MAX_MAGNITUDE * greatest
    return operation(image, sign * amount if signed else amount, KERNELS[kernel])
