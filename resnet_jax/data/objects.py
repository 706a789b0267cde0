"""Images with objects: the transforms that put them on a canvas, with their boxes.

Sources of such images have items with the target 'boxes' float32 [n, 4], (x1, y1, x2, y2) in
continuous pixels of the image; 'classes' int32 [n]; 'ignore' bool [n], objects that are neither
right nor wrong, such as crowds; 'areas' float32 [n], in square pixels; and 'id' int32. They also
have `most_objects`, the most objects in an image.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.crops import Crop
from resnet_jax.data.decode import Region
from resnet_jax.data.sizes import image_size
from resnet_jax.data.transforms import cut, image_shape
from resnet_jax.data.types import Example, Item

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow
LEAST_SIDE = 1.0  # pixels of the canvas; smaller objects are not trained


class Canvas(NamedTuple):
    """Scales an image and puts it into the upper left corner of a canvas of zeros.

    Attributes:
      size: (height, width) of the canvas.
      channels: 1 or 3.
      max_objects: places for objects.
      short_side: the length of the scaled image's shorter side, unless the image would then not
        fit; None: the image becomes as large as the canvas allows.
      long_side: the most that the longer side may have; None: what the canvas allows.
    """

    size: tuple[int, int]
    channels: int
    max_objects: int
    short_side: int | None = None
    long_side: int | None = None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a scaled image, of which these are the sides."""
        scale = min(self.size[0] / height, self.size[1] / width)
        if self.short_side is not None:
            scale = min(scale, self.short_side / min(height, width))
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(height, width))
        return tuple(max(1, min(most, round(side * scale))) for side, most in zip(
            (height, width), self.size, strict=True))

    def pixels(self, item: Item, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The canvas uint8 [H, W, channels], and (height, width) of the image on it, int32 [2].

        Raises:
          UnreadableImageError: the image is damaged.
        """
        crop = self._crop(item, mirrored)
        image = cut(item, crop, reduce=False)
        if image.shape[-1] != self.channels:
            image = np.round(image.astype(np.float32) @ GREY).astype(np.uint8)[:, :, None]
        canvas = np.zeros((*self.size, self.channels), np.uint8)
        canvas[:crop.size[0], :crop.size[1]] = image
        return canvas, np.array(crop.size, np.int32)

    def _crop(self, item: Item, mirrored: bool) -> Crop:
        height, width = image_shape(item)
        return Crop(Region(0, 0, height, width, closed=True), self.scaled(height, width), mirrored)

    def example(self, item: Item, *, mirrored: bool = False) -> Example:
        """The canvas, and the objects on it.

        Returns:
          'image' uint8 [H, W, channels]; 'size' int32 [2], height and width of the image on it;
          'original' int32 [2], those of the item; 'boxes' float32 [G, 4] in pixels of the canvas,
          'classes' int32 [G], 'ignore' bool [G], 'areas' float32 [G] in pixels of the item,
          'present' bool [G], False where there is no object; 'id' int32.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        canvas, size = self.pixels(item, mirrored=mirrored)
        target, count = item.target, min(len(item.target['boxes']), self.max_objects)
        boxes = self._crop(item, mirrored).boxes(np.asarray(target['boxes'], np.float32))

        def padded(values: np.ndarray, dtype) -> np.ndarray:
            result = np.zeros((self.max_objects, *values.shape[1:]), dtype)
            result[:count] = values[:count]
            return result

        return {
            'image': canvas, 'size': size, 'original': np.array(image_shape(item), np.int32),
            'boxes': padded(boxes, np.float32), 'classes': padded(target['classes'], np.int32),
            'ignore': padded(target['ignore'], np.bool_),
            'areas': padded(target['areas'], np.float32),
            'present': np.arange(self.max_objects) < count,
            'id': np.int32(target['id']),
        }


def canvas_of(section: ConfigDict) -> Canvas:
    """The canvas of an evaluation, from the section `data` of a config."""
    return Canvas(image_size(section), section.channels, section.max_objects,
                  section.short_sides[-1] if section.short_sides else None, section.long_side)


class EvalTransform(NamedTuple):
    """Puts an image on a canvas; see `Canvas.example`."""

    canvas: Canvas

    def __call__(self, item: Item) -> Example:
        return self.canvas.example(item)


class TrainTransform(NamedTuple):
    """Puts an image on a canvas at a random scale and flips it; see `Canvas.example`.

    Objects that become smaller than a pixel are left out.

    Attributes:
      canvas: its `short_side` gives way to `short_sides`.
      flip: whether half of the images are mirrored.
      short_sides: one is drawn for each image; none: as `canvas` says.
    """

    canvas: Canvas
    flip: bool
    short_sides: tuple[int, ...] = ()

    def __call__(self, item: Item, rng: np.random.Generator) -> Example:
        canvas = self.canvas
        if self.short_sides:
            canvas = canvas._replace(short_side=int(rng.choice(self.short_sides)))
        example = canvas.example(item, mirrored=bool(self.flip and rng.integers(2)))
        sides = example['boxes'][:, 2:] - example['boxes'][:, :2]
        return example | {'present': example['present'] & (sides >= LEAST_SIDE).all(-1)}
