"""RandAugment (Cubuk et al., 2020): a few random operations of the same magnitude, on the host."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30


def _shear(image, amount, horizontal):
    x, y = (amount, 0) if horizontal else (0, amount)
    return image.transform(image.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0))


def _translate(image, amount, horizontal):
    x, y = (amount, 0) if horizontal else (0, amount)
    return image.transform(image.size, Image.Transform.AFFINE,
                           (1, 0, x * image.width, 0, 1, y * image.height))


def _enhance(kind):
    return lambda image, amount: kind(image).enhance(1 + amount)


# Name: (greatest amount, whether the sign is random, the operation on (image, amount)), with the
# ranges of the reference and of torchvision.
OPERATIONS = {
    'identity': (0, False, lambda image, _: image),
    'shear_x': (0.3, True, lambda image, a: _shear(image, a, True)),
    'shear_y': (0.3, True, lambda image, a: _shear(image, a, False)),
    'translate_x': (150 / 331, True, lambda image, a: _translate(image, a, True)),
    'translate_y': (150 / 331, True, lambda image, a: _translate(image, a, False)),
    'rotate': (30, True, lambda image, a: image.rotate(a)),
    'brightness': (0.9, True, _enhance(ImageEnhance.Brightness)),
    'color': (0.9, True, _enhance(ImageEnhance.Color)),
    'contrast': (0.9, True, _enhance(ImageEnhance.Contrast)),
    'sharpness': (0.9, True, _enhance(ImageEnhance.Sharpness)),
    'posterize': (4, False, lambda image, a: ImageOps.posterize(image, 8 - round(a))),
    'solarize': (255, False, lambda image, a: ImageOps.solarize(image, 255 - a)),
    'auto_contrast': (0, False, lambda image, _: ImageOps.autocontrast(image)),
    'equalize': (0, False, lambda image, _: ImageOps.equalize(image)),
}


def rand_augment(image: np.ndarray, rng: np.random.Generator, layers: int,
                 magnitude: int) -> np.ndarray:
    """Applies `layers` operations, each chosen uniformly.

    Args:
      image: uint8 [H, W, 3].
      rng: the key.
      layers: operations, one after the other.
      magnitude: of all of them, from 0 to 30.

    Returns:
      uint8 [H, W, 3]. Pixels that come from outside are black.
    """
    pillow = Image.fromarray(image)
    names = tuple(OPERATIONS)
    for _ in range(layers):
        greatest, signed, operation = OPERATIONS[names[rng.integers(len(names))]]
        amount = greatest * magnitude / MAX_MAGNITUDE
        if signed and rng.integers(2):
            amount = -amount
        pillow = operation(pillow, amount)
    return np.asarray(pillow)
