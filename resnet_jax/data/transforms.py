"""Host-side transforms from a raw item to the uint8 image sent to the device; pure functions."""

from typing import NamedTuple

import numpy as np

from resnet_jax.data import crops, decode
from resnet_jax.data.decode import Region
from resnet_jax.data.randaugment import rand_augment
from resnet_jax.data.sources import Item


class EvalTransform(NamedTuple):
    """Resizes the shorter side to `resize` pixels, and crops the central square of `size`."""

    size: int
    resize: int

    def __call__(self, item: Item, position: int = 0) -> np.ndarray:
        """uint8 [size, size, C] of an item. The position does not count."""
        height, width = _size(item)
        region = crops.center_crop(height, width, self.resize, self.size)
        # Exact to the pixel, since reported errors rest on it: never at reduced scale.
        return _cut(item, region, self.size, reduce=False)


class TrainTransform(NamedTuple):
    """A random crop and what follows it; the fields of `config.data` of these names.

    The crop 'pad' leaves crop and flip to the device; see `augment`.
    """

    size: int
    seed: int
    crop: str
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    jitter_sides: tuple[int, int]
    flip: bool
    randaugment_layers: int
    randaugment_magnitude: int

    def __call__(self, item: Item, position: int) -> np.ndarray:
        """uint8 [size, size, C] of an item at a position of the endless training sequence."""
        rng = crops.generator(self.seed, position)
        height, width = _size(item)
        if self.crop == 'random_resized':
            region = crops.random_resized_crop(height, width, rng, self.crop_scale,
                                               self.crop_ratio)
        elif self.crop == 'scale_jitter':
            region = crops.scale_jitter(height, width, rng, self.jitter_sides, self.size)
        else:
            region = crops.center_crop(height, width, self.size, self.size)
        image = _cut(item, region, self.size, reduce=self.crop != 'pad')
        if self.flip and self.crop != 'pad' and rng.integers(2):
            image = mirror(image)
        if self.randaugment_layers:
            image = rand_augment(image, rng, self.randaugment_layers, self.randaugment_magnitude)
        return image


def mirror(image: np.ndarray) -> np.ndarray:
    """Mirrors an image, uint8 [H, W, C], left to right; faster channel by channel than at once."""
    result = np.empty_like(image)
    for c in range(image.shape[-1]):
        result[:, :, c] = image[:, ::-1, c]
    return result


def _size(item: Item) -> tuple[int, int]:
    if isinstance(item.image, np.ndarray):
        return item.image.shape[:2]
    return decode.image_size(item.image, item.name)


def _cut(item: Item, region: Region, size: int, *, reduce: bool) -> np.ndarray:
    if isinstance(item.image, np.ndarray):
        return decode.resample(item.image, region, (size, size))
    return decode.decode_region(item.image, region, (size, size), item.name, reduce=reduce)
