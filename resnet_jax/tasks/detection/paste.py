"""Masks of detections in the pixels of their images: pasted and encoded on the host, in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_jax.data import masks
from resnet_jax.data.masks import RLE

THRESHOLD = 0.5


def paste(cells: np.ndarray, box: np.ndarray, height: int, width: int) -> RLE:
    """Pastes a mask into an image, as detectron2 does.

    Args:
      cells: float [M, M], probabilities on a grid over the box.
      box: float [4], xyxy in pixels of the image.
      height, width: of the image.

    Returns:
      The pixels at whose centres the probability is above a half, by bilinear interpolation
      between the centres of the cells; 0 outside of the box.
    """
    return masks.of_box(cells, box, height, width, _interpolated)


def paste_all(cells: np.ndarray, boxes: np.ndarray, size: Sequence[int]) -> list[RLE]:
    """The masks of an image: float [n, M, M], boxes float [n, 4], and (height, width)."""
    return [paste(own, box, int(size[0]), int(size[1]))
            for own, box in zip(cells, boxes, strict=True)]


def in_threads(function: Callable, *arguments: Sequence) -> list:
    """list(map(function, *arguments)); most of the time is spent in NumPy, without the lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, *arguments))


def _interpolated(cells: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows, columns = (_weights(part, size) for part, size in zip((y, x), cells.shape, strict=True))
    return rows @ cells.astype(np.float32) @ columns.T > THRESHOLD


def _weights(points: np.ndarray, size: int) -> np.ndarray:
    """Of the cells at points in units of the box: float32 [len(points), size]."""
    place = points[:, None] * size - 0.5
    return np.maximum(0, 1 - np.abs(place - np.arange(size))).astype(np.float32)
