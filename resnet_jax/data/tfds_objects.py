"""Images with objects from TensorFlow Datasets, such as its `voc` and `coco`.

A record's `objects` have a `bbox` (y1, x1, y2, x2), as shares of the image, a `label`, and
`is_difficult` or `is_crowd`. Where there is `is_difficult`, boxes are VOC's: shares of pixels that
count from 1 and include the last one.
"""

import os
import pathlib
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import cache, decode
from resnet_jax.data.boxes import Checked, Objects, Targets
from resnet_jax.data.sources import digest
from resnet_jax.data.tfds_builder import Builder, Records, image_of
from resnet_jax.data.types import Item, Tree
from resnet_jax.errors import UserError
from resnet_jax.output import duration, warn

REPORT_SECONDS = 10
FORMAT = 1  # of the cache


def open_objects(builder: Builder, config: ConfigDict, split: str) -> 'TfdsObjects':
    """Opens a split; reads `train_list`, `eval_list`, `bad_boxes` and `cache`.

    The lists name splits of TFDS, such as 'train+validation'. By default, 'train' is trained on,
    and 'test' evaluated; of COCO, whose test split has no objects, 'validation'.
    """
    data = config.data
    parts = builder.features['objects'].feature
    names = ('validation', 'val', 'test') if 'is_crowd' in parts else ('test', 'validation', 'val')
    field, names = (data.train_list, ('train',)) if split == 'train' else (data.eval_list, names)
    records = builder.open(field or builder.find_split(names))
    return TfdsObjects(records, builder.class_names, data.bad_boxes, data.cache,
                       inclusive='is_difficult' in parts)


class TfdsObjects:
    """One split; items hold the encoded images, and all objects are in memory.

    Attributes:
      num_classes, class_names, most_objects, outside, empty: see `resnet_jax.data.boxes.Boxes`.
      fingerprint: of the builder's name, version, shard sizes, classes and objects.
    """

    def __init__(self, records: Records, class_names: tuple[str, ...], bad_boxes: str,
                 cache_folder: str, *, inclusive: bool):
        """Reads all records once, or what an earlier run has cached of them.

        Args:
          records, class_names: of the split.
          bad_boxes: see `resnet_jax.data.boxes.check_boxes`.
          cache_folder: '': no cache.
          inclusive: whether boxes are VOC's.

        Raises:
          UserError: a record is damaged, a box leaves its image or has no area, or there is no
            object.
        """
        self.class_names, self.num_classes = class_names, len(class_names)
        self._records = records
        found = _read(records, cache_folder, inclusive)
        wrong = np.flatnonzero((found['classes'] < 0) | (found['classes'] >= self.num_classes))
        of_image = np.repeat(np.arange(len(found['counts'])), found['counts'])
        starts = np.cumsum(found['counts']) - found['counts']
        if len(wrong):
            raise UserError(f'{records.name}[{of_image[wrong[0]]}] has the label '
                            f'{found["classes"][wrong[0]]}, which is not in '
                            f'[0, {self.num_classes}).')

        def describe(i: int) -> str:
            box = ', '.join(f'{x:g}' for x in found['boxes'][i])
            return (f'{records.name}[{of_image[i]}]: object {i - starts[of_image[i]] + 1} '
                    f'({class_names[found["classes"][i]]}; {box})')

        checked = boxes_lib.check_boxes(found['boxes'], found['sizes'][of_image], describe,
                                        bad_boxes, least_side=int(inclusive))
        self.outside, self.empty = checked.outside, checked.empty
        objects = _objects(found, of_image, checked)
        self._targets = Targets(objects, found['ids'], records.name)
        self.most_objects = self._targets.most_objects
        self.fingerprint = digest(records.fingerprint, class_names, self._targets.ids, *objects)

    def __len__(self) -> int:
        return len(self._records.source)

    def __getitem__(self, index: int) -> Item:
        name, example = self._records.read(index)
        return Item(image_of(example), self._targets[index], name)


def _read(records: Records, cache_folder: str, inclusive: bool) -> dict[str, np.ndarray]:
    """What `_parse` finds in all records, and 'counts' int64 [N]: of objects in each.

    Where this takes long, progress is reported.
    """
    path = _cache_file(records, cache_folder)
    if path and (found := cache.load(path)) is not None:
        return found
    parts, begin, count = [], time.monotonic(), len(records.source)
    reported = begin
    for i in range(count):
        name, example = records.read(i)
        parts.append(_parse(example, name, i, inclusive))
        now = time.monotonic()
        if now - reported > REPORT_SECONDS:
            reported = now
            left = duration((now - begin) / (i + 1) * (count - i - 1))
            warn(f'reading the objects of {records.name}: {i + 1:,} of {count:,} images, '
                 f'{left} left.')
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found['counts'] = np.array([len(part['boxes']) for part in parts])
    if path:
        cache.save(path, **found)
    return found


def _cache_file(records: Records, folder: str) -> pathlib.Path | None:
    """Where the objects are cached; None without a folder, or if the shards are not on a disk."""
    try:
        stats = [os.stat(file) for file in records.files]
    except OSError:
        return None
    key = digest(FORMAT, records.fingerprint, [(x.st_size, x.st_mtime_ns) for x in stats])
    return pathlib.Path(folder).expanduser() / f'objects-{key}.npz' if folder else None


def _parse(example: dict[str, Any], name: str, index: int,
           inclusive: bool) -> dict[str, np.ndarray]:
    """The objects of a record, without decoding its image.

    Returns:
      'sizes' int64 [1, 2], height and width of the image; 'ids' int64 [1], the index where the
      dataset has none; 'boxes' float64 [n, 4], xyxy in continuous pixels; 'classes' int32 [n],
      'ignore' bool [n], and 'areas' float64 [n], NaN where they are those of the boxes.
    """
    image, objects = image_of(example), example['objects']
    height, width = (image.shape[:2] if isinstance(image, np.ndarray) else
                     decode.image_size(image, name))
    shares = np.array(objects['bbox'], float).reshape(-1, 4)
    boxes = shares[:, [1, 0, 3, 2]] * np.array([width, height] * 2)
    if inclusive:
        boxes = np.round(boxes) - (1, 1, 0, 0)
    nothing = np.zeros(len(boxes))
    ignore = objects.get('is_difficult', objects.get('is_crowd', nothing))
    return {
        'sizes': np.array([[height, width]]),
        'ids': np.array([int(example.get('image/id', index))]),
        'boxes': boxes, 'classes': np.array(objects['label'], np.int32),
        'ignore': np.array(ignore, bool),
        'areas': np.array(objects.get('area', nothing * np.nan), float)}


def _objects(found: Tree, of_image: np.ndarray, checked: Checked) -> Objects:
    """The objects that are kept, of an area of their own or of their boxes."""
    boxes = checked.boxes
    areas = np.where(np.isnan(found['areas']), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
                     found['areas'])
    keep = checked.keep
    return Objects(
        counts=np.bincount(of_image[keep], minlength=len(found['counts'])), boxes=boxes[keep],
        classes=found['classes'][keep], ignore=found['ignore'][keep],
        areas=areas[keep].astype(np.float32))
