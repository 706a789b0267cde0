"""Files of detections, in the formats that COCO's and VOC's own evaluations read."""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from resnet_jax.tasks.detection.truth import Found

BOX_DECIMALS, SCORE_DECIMALS = 3, 5


def write_coco(path: str | os.PathLike, image_ids: Sequence[int], found: Sequence[Found],
               category_ids: Sequence[int]) -> None:
    """Writes COCO's results format (https://cocodataset.org/#format-results), whole or not at all.

    Boxes are (x, y, width, height) in pixels with at most 3 decimals; scores have at most 5. Masks
    are written where there are some.

    Args:
      path: the file, in a folder that exists; an older file is replaced.
      image_ids: COCO's number of each image.
      found: the detections of the same images.
      category_ids: COCO's number of each class.

    Raises:
      ValueError: if a number is not finite, or image_ids and found have different lengths.
      OSError: if the file cannot be written.
    """
    rows = []
    for image_id, (boxes, classes, scores, masks) in zip(image_ids, found, strict=True):
        shapes = [{}] * len(boxes) if masks is None else [{'segmentation': x} for x in masks]
        boxes = boxes.astype(np.float64)
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        rows += [{'image_id': int(image_id), 'category_id': int(category_ids[label]), 'bbox': box,
                  'score': score, **shape}
                 for label, box, score, shape in zip(classes, _rounded(boxes, BOX_DECIMALS),
                                              _rounded(scores, SCORE_DECIMALS), shapes,
                                                     strict=True)]
    _write_whole(pathlib.Path(path), json.dumps(rows, allow_nan=False, separators=(',', ':')))


def write_voc(folder: str | os.PathLike, split: str, class_names: Sequence[str],
              image_names: Sequence[str], found: Sequence[Found]) -> None:
    """Writes VOC's comp4_det_<split>_<class>.txt of every class, each whole or not at all.

    A line is `name score xmin ymin xmax ymax`, where coordinates are those of VOC's XML files: they
    count from 1, and xmax and ymax belong to the box (devkit document of VOC 2012, section 4.3).
    A class without detections has an empty file.

    Args:
      folder: made if it is missing; older files are replaced.
      split: 'test', 'val', …
      class_names: the name of each class.
      image_names: the name of each image without its suffix, as '2007_000027'.
      found: the detections of the same images.

    Raises:
      ValueError: if image_names and found have different lengths.
      OSError: if a file cannot be written.
    """
    lines: list[list[str]] = [[] for _ in class_names]
    for name, (boxes, classes, scores, _) in zip(image_names, found, strict=True):
        pixels = boxes.astype(np.float64) + np.array([1, 1, 0, 0])
        for label, score, box in zip(classes, scores, pixels, strict=True):
            numbers = ' '.join(f'{x:.{BOX_DECIMALS}f}' for x in box)
            lines[label].append(f'{name} {score:.{SCORE_DECIMALS}f} {numbers}\n')
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in zip(class_names, lines, strict=True):
        _write_whole(folder / f'comp4_det_{split}_{name}.txt', ''.join(own))


def _rounded(values, decimals: int) -> list:
    return np.round(values.astype(np.float64), decimals).tolist()


def _write_whole(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f'.unfinished_{path.name}')
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
