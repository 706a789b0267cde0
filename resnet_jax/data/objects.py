"""Images with objects: the transforms that put them on a canvas, with their boxes.

Sources of such images have items with the target 'boxes' float32 [n, 4], (x1, y1, x2, y2) in
continuous pixels of the image; 'classes' int32 [n]; 'ignore' bool [n], objects that are neither
right nor wrong, such as crowds; 'areas' float32 [n], in square pixels; and 'id' int32. Where
`model.detector.masks` is true, also 'masks', the RLE of each object as in `data.masks`. Sources
also have `most_objects`, the most objects in an image.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import masks
from resnet_jax.data.crops import Crop
from resnet_jax.data.decode import Region
from resnet_jax.data.masks import CELLS
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
      masks: whether examples have the masks of the objects.
      window: (height, width) of the part of the scaled image that is seen, on a canvas of this
        size; None: all of it.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int
    max_objects: int
    short_side: int | None = None
    long_side: int | None = None
    masks: bool = False
    window: tuple[int, int] | None = None

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

    def pixels(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The canvas uint8 [H, W, channels], and (height, width) of the image on it, int32 [2].

        Raises:
          UnreadableImageError: the image is damaged.
        """
        size, crop = self._crop(item, False, (0, 0))
        return self._cut(item, size, crop), np.array(crop.size, np.int32)

    def _cut(self, item: Item, size: tuple[int, int], crop: Crop) -> np.ndarray:
        canvas = np.zeros((*size, self.channels), np.uint8)
        canvas[:crop.size[0], :crop.size[1]] = with_channels(
            cut(item, crop, reduce=False), self.channels)
        return canvas

    def _crop(self, item: Item, mirrored: bool,
              corner: tuple[float, float]) -> tuple[tuple[int, int], Crop]:
        """The size of the canvas, and the crop that scales the image, or what is seen of it."""
        height, width = image_shape(item)
        number, size = self.place(height, width)
        if self.window is None:
            whole = Region(0, 0, height, width, closed=True)
            return self.sizes[number], Crop(whole, size, mirrored)
        seen = tuple(map(min, self.window, size))
        top, left = (int(share * (whole - part + 1))
                     for share, whole, part in zip(corner, size, seen, strict=True))
        y, x = height / size[0], width / size[1]
        return self.window, Crop(
            Region(top * y, left * x, seen[0] * y, seen[1] * x, closed=False), seen, mirrored)

    def example(self, item: Item, *, mirrored: bool = False,
                corner: tuple[float, float] = (0, 0)) -> Example:
        """The canvas, and the objects on it.

        Objects that have less than a pixel in a window are left out, and then those for which there
        is no place; the others are clipped to it.

        Args:
          item: see `data.objects`.
          mirrored: whether the image is mirrored.
          corner: where the window lies in the free space, (y, x), from 0 to less than 1.

        Returns:
          'image' uint8 [H, W, channels]; 'size' int32 [2], height and width of the image on it;
          'original' int32 [2], those of the item; 'boxes' float32 [G, 4] in pixels of the canvas,
          'classes' int32 [G], 'ignore' bool [G], 'areas' float32 [G] in pixels of the item,
          'present' bool [G], False where there is no object; 'id' int32; and, if asked for, 'masks'
          uint8 [G, 112, 112], 0 or 1, on a grid over each box.

        Raises:
          UnreadableImageError: the image is damaged.
          UserError: the source has no boxes, or no masks.
        """
        if 'boxes' not in item.target:
            raise UserError(f'{item.name} has no boxes, which task=detection needs: choose another '
                            'data.source, such as coco or voc.')
        if self.masks and 'masks' not in item.target:
            raise UserError(f'{item.name} has no masks, which model.detector.masks needs: choose '
                            'another data.source, such as coco, voc or instances.')
        size, crop = self._crop(item, mirrored, corner)
        target, boxes = item.target, np.asarray(item.target['boxes'], np.float32)
        if self.window is not None:
            boxes = np.clip(boxes, *crop.limits)
        moved, kept = crop.boxes(boxes), np.arange(len(boxes))
        if self.window is not None:
            kept = np.flatnonzero((moved[:, 2:] - moved[:, :2] >= LEAST_SIDE).all(-1))
        kept = kept[:self.max_objects]

        def padded(values: np.ndarray, dtype) -> np.ndarray:
            result = np.zeros((self.max_objects, *values.shape[1:]), dtype)
            result[:len(kept)] = values
            return result

        example = {
            'image': self._cut(item, size, crop), 'size': np.array(crop.size, np.int32),
            'original': np.array(image_shape(item), np.int32),
            'boxes': padded(moved[kept], np.float32),
            'classes': padded(target['classes'][kept], np.int32),
            'ignore': padded(target['ignore'][kept], np.bool_),
            'areas': padded(target['areas'][kept], np.float32),
            'present': np.arange(self.max_objects) < len(kept),
            'id': np.int32(target['id']),
        }
        if self.masks:
            crops = np.zeros((len(kept), CELLS, CELLS), np.uint8)
            for row, i in enumerate(kept):
                crops[row] = masks.crop(target['masks'][i], boxes[i])
            example['masks'] = padded(crops[:, :, ::-1] if mirrored else crops, np.uint8)
        return example


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
        mirrored = bool(self.flip and rng.integers(2))
        corner = (0, 0) if canvas.window is None else tuple(rng.random(2))
        example = canvas.example(item, mirrored=mirrored, corner=corner)
        sides = example['boxes'][:, 2:] - example['boxes'][:, :2]
        return example | {'present': example['present'] & (sides >= LEAST_SIDE).all(-1)}
