"""Turns arrays into pictures, uint8 [H, W, 3]: enlarges, colours and tiles them."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 1  # tiles are kept apart by a share of their size, at least a pixel
PAPER = (128, 128, 128)  # between the tiles: seen on light pages and on dark ones
LEAST_SIDE = 64  # pixels of a tile on which a smooth map is laid
MOST_CELLS = 56  # per side of a map of single pixels: smaller ones could not be seen

# Of few anchors, interpolated: dark to light, and through white with zero in the middle.
SEQUENTIAL = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
DIVERGING = np.array([(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)])


def to_rgb(images: np.ndarray) -> np.ndarray:
    """uint8, or float from 0 to 1, [..., H, W, 1 or 3] -> uint8 [..., H, W, 3]."""
    if images.dtype != np.uint8:
        images = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def coloured(values: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Values from 0 to 1, [...], as colours between the anchors [n, 3]: uint8 [..., 3]."""
    positions = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, positions, channel) for channel in anchors.T]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def signed(values: np.ndarray, percentile: float = 100) -> np.ndarray:
    """Every map of [N, H, W] over a magnitude of its own, blue below zero and red above.

    Args:
      values: the maps.
      percentile: of the magnitudes, from which on the colour is the strongest; by default the
        largest. A lower one keeps a few pixels from making all others pale.
    """
    peak = np.percentile(np.abs(values), percentile, (1, 2), keepdims=True)
    return coloured(0.5 + 0.5 * values / np.where(peak == 0, 1, peak), DIVERGING)


def enlarged(images: np.ndarray, least: int = LEAST_SIDE) -> np.ndarray:
    """[N, H, W, ...] with every pixel repeated until the sides have at least that many."""
    times = max(1, math.ceil(least / min(images.shape[1:3])))
    return images.repeat(times, 1).repeat(times, 2)


def resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps [N, h, w], bilinearly interpolated: float32 [N, height, width]."""
    return np.asarray(jax.image.resize(maps, (len(maps), height, width), 'linear'), np.float32)


def overlaid(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Heat maps over grey images, each map over its own largest value.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      maps: float [N, h, w], at least 0.

    Returns:
      uint8 [N, H', W', 3], enlarged.
    """
    grey = enlarged(to_rgb(images).mean(-1, keepdims=True))
    heat = resized(maps, *grey.shape[1:3])
    peak = heat.max((1, 2), keepdims=True)
    heat = coloured(heat / np.where(peak == 0, 1, peak), SEQUENTIAL)
    return np.round(0.4 * grey + 0.6 * heat).astype(np.uint8)


def scaled(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [N, H, W, 3], resampled to uint8 [N, height, width, 3]; at that size, unchanged."""
    if images.shape[1:3] == (height, width):
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height)))
                     for image in images])


def summed(maps: np.ndarray, most: int = MOST_CELLS) -> np.ndarray:
    """Maps [N, H, W], summed over square windows so that at most that many are left per side.

    The total stays the same. The last window of a row or column is cut off at the edge.
    """
    window = math.ceil(max(maps.shape[1:]) / most)
    for axis in (1, 2):
        maps = np.add.reduceat(maps, np.arange(0, maps.shape[axis], window), axis)
    return maps


def mosaic(tiles: np.ndarray, columns: int, names: Sequence[str] = ()) -> np.ndarray:
    """Tiles in rows, a line between them: uint8 [N, H, W, 3] -> uint8 [H', W', 3].

    Args:
      tiles: row by row.
      columns: tiles of a row.
      names: of the rows, written to the left of them; without names there is no such margin.
    """
    n, height, width, _ = tiles.shape
    rows, gap = math.ceil(n / columns), max(GAP, height // 16)
    picture = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER,
                      np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (gap + i // columns * (height + gap)), (gap + i % columns * (width + gap))
        picture[top:top + height, left:left + width] = tile
    if not names:
        return picture
    font = ImageFont.load_default(max(10, min(18, height // 5)))
    margin = round(max(font.getlength(name) for name in names)) + 2 * gap + 2
    canvas = Image.new('RGB', (margin + picture.shape[1], picture.shape[0]), PAPER)
    canvas.paste(Image.fromarray(picture), (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(names):
        middle = gap + row * (height + gap) + height // 2
        draw.text((gap + 1, middle), name, fill='black', font=font, anchor='lm')
    return np.asarray(canvas)


def one_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """Indices of the first image of every class, in the order of the classes: int [n <= most]."""
    return np.unique(labels, return_index=True)[1][:most]


def predictions(classes: Sequence[str], predicted: np.ndarray, labels: np.ndarray) -> str:
    """The predicted classes of the images of a picture in a sentence that marks what is wrong."""
    return 'Predicted: ' + ', '.join(
        classes[guess] if guess == label else f'{classes[guess]} (wrong: {classes[label]})'
        for guess, label in zip(predicted, labels, strict=True)) + '.'
