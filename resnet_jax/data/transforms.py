"""Host-side transforms from a raw item to the example sent to the device; pure functions.

An example is a dict: 'image' uint8 [H, W, C], and the target of the item as arrays, whose 'boxes'
and 'points' follow the pixels.
"""

import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import crops, decode
from resnet_jax.data.crops import Crop
from resnet_jax.data.decode import Region
from resnet_jax.data.randaugment import rand_augment
from resnet_jax.data.sizes import eval_resize, eval_size, image_size, pair
from resnet_jax.data.types import Example, Item, as_arrays
from resnet_jax.errors import UserError

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow
EDGE = 1e-6  # pixels that rounding may move the edge of an image by


class EvalTransform(NamedTuple):
    """Scales the image to cover a rectangle of the shape of `size`, and crops its centre.

    Attributes:
      size: of the crop: the side of a square, or (height, width).
      resize: the shorter side of the rectangle, which is the image's own where it is square; None:
        that of `size`.
      channels: of `pixels`, 1 or 3; None: those of the image.
      kernel: 'bilinear' or 'bicubic'.
    """

    size: int | tuple[int, int]
    resize: int | None = None
    channels: int | None = None
    kernel: str = 'bilinear'

    def __call__(self, item: Item) -> Example:
        """'image' uint8 [*size, C] of an item, and its target."""
        return _example(item, self.crop(item), reduce=False, kernel=self.kernel)

    def pixels(self, item: Item) -> np.ndarray:
        """uint8 [*size, C]: the image alone."""
        # Exact to the pixel, since reported errors rest on it: never at reduced scale.
        image = cut(item, self.crop(item), reduce=False, kernel=self.kernel)
        return image if self.channels is None else with_channels(image, self.channels)

    @property
    def key(self) -> tuple:
        """What caches know the transform by: of a square, its side; no kernel that is bilinear."""
        height, width = pair(self.size)
        size = height if height == width else (height, width)
        return (size, self.resize, *(() if self.channels is None else (self.channels,)),
                *(() if self.kernel == 'bilinear' else (self.kernel,)))

    def crop(self, item: Item) -> Crop:
        """What is seen of an item."""
        shorter = min(pair(self.size)) if self.resize is None else self.resize
        region = crops.center_crop(*image_shape(item), shorter, self.size)
        return Crop(region, pair(self.size))


class TrainTransform(NamedTuple):
    """A random crop and what follows it; the fields of `config.data` of these names.

    The crop 'pad' leaves crop and flip to the device; see `augment`.
    """

    size: int | tuple[int, int]
    crop: str
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    jitter_sides: tuple[int, int]
    flip: bool
    randaugment_layers: int
    randaugment_magnitude: int
    randaugment_noise: float = 0.0
    train_filter: str = 'bilinear'

    def __call__(self, item: Item, rng: np.random.Generator) -> Example:
        """'image' uint8 [*size, C] of an item, and its target.

        Raises:
          UserError: RandAugment would move pixels away from coordinates.
        """
        if self.randaugment_layers and crops.has_coordinates(item.target):
            raise UserError('data.randaugment_layers must be 0 for images with boxes or points, '
                            'because RandAugment does not move them.')
        crop, kernel, kernels = self._crop(item, rng), self.train_filter, (self.train_filter,)
        if kernel == 'random':
            kernels = tuple(decode.FILTERS)
            kernel = kernels[rng.integers(len(kernels))]
        example = _example(item, crop, reduce=self.crop != 'pad', kernel=kernel)
        if self.randaugment_layers:
            example['image'] = rand_augment(
                example['image'], rng, self.randaugment_layers, self.randaugment_magnitude,
                self.randaugment_noise, kernels)
        return example

    def _crop(self, item: Item, rng: np.random.Generator) -> Crop:
        height, width = image_shape(item)
        if self.crop == 'random_resized':
            region = crops.random_resized_crop(height, width, rng, self.crop_scale,
                                               self.crop_ratio)
        elif self.crop == 'scale_jitter':
            region = crops.scale_jitter(height, width, rng, self.jitter_sides, self.size)
        else:
            region = crops.center_crop(height, width, min(pair(self.size)), self.size)
            return Crop(region, pair(self.size))
        return Crop(region, pair(self.size), bool(self.flip and rng.integers(2)))


def eval_transform(config: ConfigDict) -> EvalTransform:
    """What is done to images of an evaluation on the host.

    Raises:
      UserError: `data.image_size` is not set, or wrong.
    """
    data = config.data
    return EvalTransform(eval_size(data), eval_resize(data), kernel=data.eval_filter)


def train_transform(config: ConfigDict) -> TrainTransform:
    """What is done to training images on the host.

    Raises:
      UserError: as `eval_transform`.
    """
    data = config.data
    return TrainTransform(image_size(data), data.train_crop, tuple(data.crop_scale),
                          tuple(data.crop_ratio), tuple(data.jitter_sides), data.flip,
                          data.randaugment_layers, data.randaugment_magnitude,
                          data.randaugment_noise, data.train_filter)


def image_shape(item: Item) -> tuple[int, int]:
    """(height, width) of an item's image, without decoding it.

    Raises:
      UnreadableImageError: the image has no header.
    """
    if isinstance(item.image, np.ndarray):
        return item.image.shape[:2]
    return decode.image_size(item.image, item.name)


def channels(item: Item) -> int:
    """The number of channels of an item's image after decoding."""
    return item.image.shape[-1] if isinstance(item.image, np.ndarray) else 3


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, C] as [H, W, channels], of 1 or 3 each: colours as grey, or grey repeated."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return np.round(image.astype(np.float32) @ GREY).astype(np.uint8)[:, :, None]


def cut(item: Item, crop: Crop, *, reduce: bool, kernel: str = 'bilinear') -> np.ndarray:
    """The pixels of a crop.

    Args:
      item: an image, encoded or not.
      crop: what to see of it.
      reduce: whether a JPEG may be decoded at a reduced scale; see `decode.decode_region`.
      kernel: 'bilinear' or 'bicubic'.

    Returns:
      uint8 [*crop.size, C]; zeros outside of the image.

    Raises:
      UnreadableImageError: what the crop needs of the image is damaged.
    """
    height, width = image_shape(item)  # reads the header
    rows, y = _inside(crop.region.top, crop.region.height, crop.size[0], height)
    columns, x = _inside(crop.region.left, crop.region.width, crop.size[1], width)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    region = Region(y[0], x[0], y[1], x[1], crop.region.closed)
    if min(size) <= 0:
        seen = np.zeros((0, 0, channels(item)), np.uint8)
        rows = columns = slice(0, 0)
    elif isinstance(item.image, np.ndarray):
        seen = decode.resample(item.image, region, size, kernel)
    else:
        seen = decode.decode_region(item.image, region, size, item.name, reduce=reduce,
                                    kernel=kernel)
    pixels = seen
    if seen.shape[:2] != crop.size:
        pixels = np.zeros((*crop.size, seen.shape[-1]), np.uint8)
        pixels[rows, columns] = seen
    return mirror(pixels) if crop.mirrored else pixels


def mirror(image: np.ndarray) -> np.ndarray:
    """Mirrors an image, uint8 [H, W, C], left to right; faster channel by channel than at once."""
    result = np.empty_like(image)
    for c in range(image.shape[-1]):
        result[:, :, c] = image[:, ::-1, c]
    return result


def _inside(start: float, length: float, size: int, side: int,
            ) -> tuple[slice, tuple[float, float]]:
    """Along one axis: pixels of the result inside of the image; their start and length there.

    A pixel of the result that lies in the image only partly is left out.
    """
    if start >= 0 and start + length <= side + EDGE:
        return slice(0, size), (start, length)
    scale = length / size
    first = max(0, math.ceil(-start / scale - EDGE))
    last = min(size, math.floor((side - start) / scale + EDGE))
    begin = max(0.0, start + first * scale)
    return slice(first, last), (begin, min(side, start + last * scale) - begin)


def _example(item: Item, crop: Crop, *, reduce: bool, kernel: str) -> Example:
    image = cut(item, crop, reduce=reduce, kernel=kernel)
    return as_arrays(crop.target(item.target)) | {'image': image}
