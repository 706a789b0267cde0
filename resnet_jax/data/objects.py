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
from resnet_jax.data.sizes import image_size, pair
from resnet_jax.data.transforms import cut, image_shape, with_channels
from resnet_jax.data.types import Example, Item, Source
from resnet_jax.errors import UserError

LEAST_SIDE = 1.0  # pixels of the canvas; smaller objects are not trained


class Canvas(NamedTuple):
    """Scales an image and puts it into the upper left corner of a canvas of zeros.

    Attributes:
      sizes: (height, width) of the canvases; an image gets the one on which it is largest, the
        first of them if several tie.
      channels: 1 or 3.
      max_objects: places for objects.
      short_side: the length of the scaled image's shorter side, unless the image would then not
        fit; None: the image becomes as large as the canvas allows.
      long_side: the most that the longer side may have; None: what the canvas allows.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int
    max_objects: int
    short_side: int | None = None
    long_side: int | None = None

    def place(self, height: int, width: int) -> tuple[int, tuple[int, int]]:
        """The canvas for an image.

        Args:
          height, width: of the image.

        Returns:
          The number of the canvas, and (height, width) of the scaled image on it.
        """
        most = [min(size[0] / height, size[1] / width) for size in self.sizes]
        # Whatever the scale, which is random in training; ties are up to rounding.
        number = next(i for i, scale in enumerate(most) if scale >= max(most) * (1 - 1e-9))
        scale = most[number]
        if self.short_side is not None:
            scale = min(scale, self.short_side / min(height, width))
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(height, width))
        return number, tuple(max(1, min(limit, round(side * scale))) for side, limit in zip(
            (height, width), self.sizes[number], strict=True))

    def pixels(self, item: Item, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The canvas uint8 [H, W, channels], and (height, width) of the image on it, int32 [2].

        Raises:
          UnreadableImageError: the image is damaged.
        """
        number, crop = self._crop(item, mirrored)
        image = with_channels(cut(item, crop, reduce=False), self.channels)
        canvas = np.zeros((*self.sizes[number], self.channels), np.uint8)
        canvas[:crop.size[0], :crop.size[1]] = image
        return canvas, np.array(crop.size, np.int32)

    def _crop(self, item: Item, mirrored: bool) -> tuple[int, Crop]:
        """The number of the canvas, and the crop that scales the whole image."""
        height, width = image_shape(item)
        number, size = self.place(height, width)
        return number, Crop(Region(0, 0, height, width, closed=True), size, mirrored)

    def example(self, item: Item, *, mirrored: bool = False) -> Example:
        """The canvas, and the objects on it.

        Returns:
          'image' uint8 [H, W, channels]; 'size' int32 [2], height and width of the image on it;
          'original' int32 [2], those of the item; 'boxes' float32 [G, 4] in pixels of the canvas,
          'classes' int32 [G], 'ignore' bool [G], 'areas' float32 [G] in pixels of the item,
          'present' bool [G], False where there is no object; 'id' int32.

        Raises:
          UnreadableImageError: the image is damaged.
          UserError: the source has no boxes.
        """
        if 'boxes' not in item.target:
            raise UserError(f'{item.name} has no boxes, which task=detection needs: choose another '
                            'data.source, such as coco or voc.')
        canvas, size = self.pixels(item, mirrored=mirrored)
        target, count = item.target, min(len(item.target['boxes']), self.max_objects)
        boxes = self._crop(item, mirrored)[1].boxes(np.asarray(target['boxes'], np.float32))

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
    """The canvases of an evaluation, from the section `data` of a config.

    Raises:
      UserError: `data.image_size` is not set, or wrong.
    """
    sizes = image_size(section), *map(pair, section.canvases)
    return Canvas(sizes, section.channels, section.max_objects,
                  section.short_sides[-1] if section.short_sides else None, section.long_side)


def groups(canvas: Canvas, source: Source) -> list[np.ndarray]:
    """The images of a source by the canvas that they are put on.

    Args:
      canvas: with several sizes.
      source: with `sizes`, int [N, 2], the height and width of each image.

    Returns:
      For each canvas, the indices of its images, ascending.

    Raises:
      UserError: the source does not know the sizes of its images.
    """
    sizes = getattr(source, 'sizes', None)
    if sizes is None:
        raise UserError('data.canvases is for data whose images have known sizes, such as coco and '
                        "voc: set it to '()', or data.source to one of these.")
    chosen = np.array([canvas.place(int(height), int(width))[0] for height, width in sizes])
    return [np.flatnonzero(chosen == number) for number in range(len(canvas.sizes))]


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
