"""Draws detected objects into an image."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.45  # of masks
LEAST_SIDE = 320  # pixels; smaller images are enlarged by a whole factor, so that names are legible
MARGIN = 3  # pixels around a name


def draw(image: np.ndarray, prediction: Any, classes: Sequence[str],
         least_score: float = 0.0) -> Image.Image:
    """Draws boxes with names and scores, and paints masks, through which the image can be seen.

    Where there are masks and a single class, objects have different colours, and no names.

    Args:
      image: uint8 [H, W, 1 or 3].
      prediction: with `xyxy`, `scores`, `class_id` and `mask`; see `detector.Prediction`.
      classes: names by number.
      least_score: objects with a lower score are left out.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-LEAST_SIDE // max(height, width)))
    image = image if image.shape[2] == 3 else np.repeat(image, 3, 2)
    # The best last, so that it lies on top.
    rows = [row for row in np.argsort(prediction.scores, kind='stable')
            if prediction.scores[row] >= least_score]
    masks, alone = prediction.mask, prediction.mask is not None and len(classes) == 1
    fills = {row: color(int(row if alone else prediction.class_id[row])) for row in rows}
    if masks is not None:
        image = image.copy()
        for row in rows:
            image[masks[row]] = (1 - OPACITY) * image[masks[row]] + OPACITY * np.array(fills[row])
    picture = Image.fromarray(image)
    picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    line = 1 if alone else max(2, round(max(picture.size) / 400))
    font = ImageFont.load_default(max(11, round(max(picture.size) / 50)))
    for row in rows:
        score, index = float(prediction.scores[row]), int(prediction.class_id[row])
        box = np.asarray(prediction.xyxy[row]) * factor
        box = np.clip(box, 0, np.array([*picture.size] * 2) - 1)
        fill = fills[row]
        if alone:
            pen.rectangle(tuple(box), outline=fill, width=line)
            continue
        # A dark frame around the coloured one can be seen on any background.
        pen.rectangle(tuple(box + np.array([-1, -1, 1, 1])), outline=(0, 0, 0), width=line + 2)
        pen.rectangle(tuple(box), outline=fill, width=line)
        tag = _fitting(pen, classes[index], f' {100 * score:.0f} %', picture.width, font)
        _tag(pen, tag, box, picture.size, fill, font)
    return picture


def color(index: int) -> tuple[int, int, int]:
    """The colour of a class, as far as possible from those of the classes before it."""
    hue = (0.02 + index * 0.618034) % 1  # golden-ratio steps spread over the circle
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _fitting(pen: ImageDraw.ImageDraw, name: str, score: str, width: int, font: Any) -> str:
    """A name and its score, with as many of the name's synonyms and letters as fit."""
    while len(name) > 1 and pen.textlength(name + score, font=font) > width - 2 * MARGIN:
        name = name.rpartition(', ')[0] or name.rstrip('…')[:-1] + '…'
    return name + score


def _tag(pen: ImageDraw.ImageDraw, text: str, box: np.ndarray, size: tuple[int, int],
         fill: tuple[int, int, int], font: Any) -> None:
    """A name above the box, or inside it where there is no room."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * MARGIN, bottom - top + 2 * MARGIN
    x = min(max(0, box[0] - 1), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    y = min(y, max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=fill)
    dark = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    pen.text((x + MARGIN - left, y + MARGIN - top), text,
             fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
