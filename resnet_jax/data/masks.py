"""Masks of objects as run lengths (COCO's RLE), and as crops relative to their boxes.

An RLE is {'size': [height, width], 'counts': str}, which pycocotools and JSON take as it is. It
holds the lengths of runs without and with the object, column by column.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

CELLS = 112  # of a crop in each direction
RLE = dict[str, Any]


def of_pixels(numbers: np.ndarray, height: int, width: int) -> RLE:
    """Encodes the pixels of an object.

    Args:
      numbers: ascending integers, column * height + row.
      height, width: of the image.
    """
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) > 1)
    first = numbers[starts]
    last = numbers[np.append(starts[1:], len(numbers)) - 1] + 1 if len(numbers) else first
    edges = np.stack([first, last], 1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    return from_counts(counts if counts[-1] else counts[:-1], height, width)


def from_counts(counts: Sequence[int], height: int, width: int) -> RLE:
    """Compresses the lengths of runs, of which the first one is without the object."""
    size = [int(height), int(width)]
    return _as_text(_codec().frPyObjects({'size': size, 'counts': list(counts)}, *size))


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """Encodes the union of polygons (x1, y1, x2, y2, …), in continuous pixels."""
    codec = _codec()
    parts = codec.frPyObjects([list(map(float, part)) for part in polygons], height, width)
    return _as_text(codec.merge(parts))


def decode(rle: RLE) -> np.ndarray:
    """The mask of an image, bool [height, width]."""
    return _codec().decode(rle).astype(bool)


def of_instances(instances: np.ndarray, numbers: Sequence[int]) -> list[RLE]:
    """Encodes objects in a map of instances.

    Args:
      instances: integers [H, W], the number of the object that is seen at each pixel.
      numbers: of the objects.
    """
    height, width = instances.shape
    columns = instances.T.ravel()
    pixels = np.flatnonzero(np.isin(columns, numbers))
    order = np.argsort(columns[pixels], kind='stable')
    pixels = pixels[order]
    found = columns[pixels]
    first, last = (np.searchsorted(found, numbers, side) for side in ('left', 'right'))
    return [of_pixels(pixels[a:b], height, width) for a, b in zip(first, last, strict=True)]


def crop(rle: RLE, box: np.ndarray) -> np.ndarray:
    """The mask within a box: the pixels at the centres of CELLS x CELLS cells over the box.

    Args:
      rle: of the image.
      box: float [4], xyxy in continuous pixels of the image.

    Returns:
      uint8 [CELLS, CELLS], 0 or 1.
    """
    height, width = rle['size']
    steps = (np.arange(CELLS) + 0.5) / CELLS
    rows, columns = (
        np.clip(np.floor(box[axis] + steps * (box[axis + 2] - box[axis])), 0, side - 1).astype(int)
        for axis, side in ((1, height), (0, width)))
    return _codec().decode(rle)[rows[:, None], columns]


def restore(cells: np.ndarray, box: np.ndarray, height: int, width: int) -> RLE:
    """The mask of an image from a crop: of each pixel, the cell at its centre.

    For a box with whole corners whose sides are at most CELLS pixels, this undoes `crop` exactly.

    Args:
      cells, box: see `crop`.
      height, width: of the image.
    """
    return of_box(cells, box, height, width, _nearest)


def of_box(cells: np.ndarray, box: np.ndarray, height: int, width: int, sample: Any) -> RLE:
    """Encodes a mask that lies within a box, without a bitmap of the image.

    Args:
      cells: [M, M].
      box: float [4], xyxy in pixels of the image.
      height, width: of the image.
      sample: (cells, y float [h], x float [w]) -> bool [h, w], at points in units of the box.
    """
    x1, y1, x2, y2 = map(float, box)
    # The pixels whose centres lie within the box.
    top, left = (max(0, int(np.ceil(start - 0.5))) for start in (y1, x1))
    bottom, right = (min(side, int(np.ceil(end - 0.5)))
                     for side, end in ((height, y2), (width, x2)))
    if bottom <= top or right <= left:
        return of_pixels(np.zeros(0, np.int64), height, width)
    y = (np.arange(top, bottom) + 0.5 - y1) / (y2 - y1)
    x = (np.arange(left, right) + 0.5 - x1) / (x2 - x1)
    columns, rows = np.nonzero(sample(cells, y, x).T)
    return of_pixels((columns + left) * height + rows + top, height, width)


def _nearest(cells: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows, columns = (np.clip((part * size).astype(int), 0, size - 1)
                     for part, size in zip((y, x), cells.shape, strict=True))
    return cells[rows[:, None], columns] > 0


def _as_text(rle: dict[str, Any]) -> RLE:
    return {'size': [int(side) for side in rle['size']], 'counts': rle['counts'].decode()}


@functools.cache
def _codec() -> ModuleType:
    from faster_coco_eval import mask  # slow to import

    return mask
