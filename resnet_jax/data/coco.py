"""Reads COCO's annotations of objects: one JSON file per split.

Images lie in a folder called as the split, such as `train2017`, or in `images`. The classes are the
categories in the order of their ids, numbered from 0.
"""

import functools
import json
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import masks as masks_lib
from resnet_jax.data.boxes import Boxes, Objects
from resnet_jax.data.masks import RLE
from resnet_jax.data.types import Tree
from resnet_jax.errors import UserError, readable

ON_DISK = True
LAYOUT = 'the images and annotations/instances_train2017.json'
DEFAULTS = {'train': 'annotations/instances_train2017.json',
            'test': 'annotations/instances_val2017.json'}
MOST_CATEGORY_BYTES = 2**24  # that are read in search of the end of the categories


def create(config: ConfigDict, split: str) -> Boxes:
    """See `resnet_jax.data.registry`; reads `path`, `train_list`, `eval_list` and `bad_boxes`.

    With `model.detector.masks`, items have masks.
    """
    root, files = _files(config)
    path = files[split]
    if not path.is_file():
        field = 'train_list' if split == 'train' else 'eval_list'
        raise UserError(f'{path} is missing: unpack the annotations there, or set data.{field} to '
                        'the JSON file of this split.')
    return _open(root, path, _categories(files, split), config.data.bad_boxes,
                 bool(config.model.detector.masks))


def count_classes(config: ConfigDict) -> int:
    """Counts the categories without reading the annotations."""
    _, files = _files(config)
    if not any(path.is_file() for path in files.values()):
        raise UserError(f'{files["train"]} is missing: unpack the annotations there, or set '
                        'data.train_list to the JSON file of the training split.')
    return len(_categories(files, 'train'))


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: here of one object."""
    return boxes_lib.example_target(config.model.detector.masks)


def _files(config: ConfigDict) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """The folder of the dataset, and the JSON file of each split, which may be missing."""
    data = config.data
    lists = {'train': data.train_list, 'test': data.eval_list}
    root = boxes_lib.dataset_folder(data.path, LAYOUT)
    return root, {split: root / (name or DEFAULTS[split]) for split, name in lists.items()}


def _categories(files: dict[str, pathlib.Path], split: str) -> dict[int, str]:
    """Names of the categories by id, in the order of the ids.

    Raises:
      UserError: a file has none, or those of the splits differ.
    """
    found = {name: _read_categories(path) for name, path in files.items() if path.is_file()}
    if len(found) == 2 and found['train'] != found['test']:
        raise UserError(f'the categories of {files["train"]} and {files["test"]} differ; name two '
                        'files of the same dataset in data.train_list and data.eval_list.')
    return found.get(split) or next(iter(found.values()))


def _read_categories(path: pathlib.Path) -> dict[int, str]:
    """The categories alone: parsing the whole file of COCO's training split takes many seconds."""
    content = path.read_bytes()
    start = re.search(rb'"categories"\s*:\s*(?=\[)', content)
    try:
        text = content[start.end():start.end() + MOST_CATEGORY_BYTES].decode(errors='ignore')
        categories, _ = json.JSONDecoder().raw_decode(text)
        names = {int(entry['id']): str(entry['name']) for entry in categories}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _not_coco(path, 'it has no complete list of categories') from error
    if len(names) < len(categories) or not names or not _fit(names):
        raise _not_coco(path, 'the ids of its categories must differ and fit 32 bits')
    return dict(sorted(names.items()))


def _open(root: pathlib.Path, path: pathlib.Path, categories: dict[int, str],
          bad_boxes: str, with_masks: bool) -> Boxes:
    """One split.

    Raises:
      UserError: the file is damaged or contradicts itself, or images are missing.
    """
    content = _read(path, with_masks)
    images, annotations = content['images'], content['annotations']
    ids = _column(path, 'image', images, 'id', int)
    names = _column(path, 'image', images, 'file_name', str)
    sizes = np.array([_column(path, 'image', images, side, int) for side in ('height', 'width')])
    index = {identity: i for i, identity in enumerate(ids)}
    if len(index) < len(ids) or not _fit(ids):
        raise _not_coco(path, 'the ids of its images must differ and fit 32 bits')

    image_ids = _column(path, 'annotation', annotations, 'image_id', int)
    category_ids = _column(path, 'annotation', annotations, 'category_id', int)
    xywh = np.array(_column(path, 'annotation', annotations, 'bbox', _four_numbers)).reshape(-1, 4)

    def describe(i: int) -> str:
        return (f'{path}: annotation {annotations[i].get("id", i)} ('
                f'{_name(names, index, image_ids[i])}, bbox {annotations[i]["bbox"]})')

    for known, found, what in ((index, image_ids, 'image'), (categories, category_ids, 'category')):
        unknown = next((i for i, identity in enumerate(found) if identity not in known), None)
        if unknown is not None:
            raise UserError(f'{describe(unknown)} has the {what} id {found[unknown]}, which the '
                            'file does not list; add it to the list, or remove the annotation.')
    of_image = np.array([index[identity] for identity in image_ids], np.int64)
    checked = boxes_lib.check_boxes(
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), sizes.T[of_image], describe,
        bad_boxes)
    boxes, keep = checked.boxes, checked.keep
    for entry, (width, height) in zip(annotations, xywh[:, 2:].tolist(), strict=True):
        entry.setdefault('area', width * height)
    areas = _column(path, 'annotation', annotations, 'area', float)
    order = np.argsort(of_image, kind='stable')
    order = order[keep[order]]
    known_ids = np.array(list(categories))
    objects = Objects(
        counts=np.bincount(of_image[order], minlength=len(ids)), boxes=boxes[order],
        classes=np.searchsorted(known_ids, category_ids)[order].astype(np.int32),
        ignore=np.array([bool(entry.get('iscrowd')) for entry in annotations], bool)[order],
        areas=np.array(areas, np.float32)[order])
    folder = _image_folder(root, path, names)
    return Boxes([os.path.join(folder, name) for name in names], names, np.array(ids), sizes.T,
                 objects, list(categories.values()), listed_in=str(path), checked=checked,
                 category_ids=known_ids,
                 masks=_masks(path, annotations, order, objects.counts, sizes) if with_masks
                 else None)


def _masks(path: pathlib.Path, annotations: list, order: np.ndarray, counts: np.ndarray,
           sizes: np.ndarray) -> Callable[[int], list[RLE]]:
    """(index of an image) -> the masks of its objects.

    Args:
      path: of the file.
      annotations: of all objects, whose masks are pickled.
      order: of the objects that are kept, by image.
      counts: of the objects of each image.
      sizes: [2, N], heights and widths of the images.
    """
    pickled = []
    for i in order:
        if (mask := annotations[i].get('segmentation')) is None:
            raise UserError(f'{path}: annotation {annotations[i].get("id", i)} has no mask; '
                            'add it, or set model.detector.masks to false.')
        pickled.append(mask)
    return functools.partial(_masks_of_image, str(path), pickled,
                             np.concatenate([[0], np.cumsum(counts)]), sizes)


def _masks_of_image(path: str, pickled: list[bytes], offsets: np.ndarray, sizes: np.ndarray,
                    index: int) -> list[RLE]:
    height, width = map(int, sizes[:, index])
    masks = []
    for i in range(offsets[index], offsets[index + 1]):
        mask = pickle.loads(pickled[i])
        try:
            if isinstance(mask, list):
                if not mask or any(len(part) < 6 for part in mask):
                    raise ValueError('a polygon needs three points')
                masks.append(masks_lib.from_polygons(mask, height, width))
            elif isinstance(mask['counts'], list):
                masks.append(masks_lib.from_counts(mask['counts'], *mask['size']))
            else:
                masks.append({'size': list(mask['size']), 'counts': mask['counts']})
        except Exception as error:  # whatever the decoder makes of it
            raise UserError(f'{path}: the segmentation of an object of image {index}, counted from '
                            f'0, is neither polygons nor run lengths: {error}.') from error
        if masks[-1]['size'] != [height, width]:
            raise UserError(f'{path}: a segmentation of image {index}, counted from 0, is of the '
                            f'size {masks[-1]["size"]}, but the image {[height, width]}.')
    return masks


def _read(path: pathlib.Path, with_masks: bool) -> dict[str, list]:
    def compact(entry: dict) -> dict:
        if 'segmentation' in entry:  # nine tenths of the memory that the file would take
            mask = entry.pop('segmentation')
            if with_masks:
                entry['segmentation'] = pickle.dumps(mask)
        return entry

    try:
        content = json.loads(path.read_bytes(), object_hook=compact)
    except ValueError as error:
        raise UserError(f'{path} is cut short or not JSON: {error}; copy it again.') from error
    if not isinstance(content, dict) or not all(
            isinstance(content.get(part), list) for part in ('images', 'annotations')):
        raise _not_coco(path, 'it has no lists of images and annotations')
    return content


def _column(path: pathlib.Path, kind: str, entries: list, key: str, convert: type) -> list:
    """One part of all images or annotations."""
    column = []
    for i, entry in enumerate(entries):
        try:
            column.append(convert(entry[key]))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise _not_coco(path, f'its {kind} {i}, counted from 0, has no proper {key!r}'
                            ) from error
    return column


def _four_numbers(box: Any) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return float(x), float(y), float(width), float(height)


def _fit(ids: Any) -> bool:
    least, most = boxes_lib.IDS
    return all(least <= identity <= most for identity in ids)


def _name(names: list[str], index: dict[int, int], identity: int) -> str:
    return readable(names[index[identity]]) if identity in index else f'image {identity}'


def _not_coco(path: pathlib.Path, reason: str) -> UserError:
    return UserError(f'{path} is cut short or not a COCO file of objects: {reason}; copy it again, '
                     'or name another one.')


def _image_folder(root: pathlib.Path, path: pathlib.Path, names: list[str]) -> str:
    """The first folder that holds the first image."""
    split = path.stem.removeprefix('instances_')
    folders = [root / split, root / 'images' / split, root / 'images']
    for folder in folders:
        if names and (folder / names[0]).is_file():
            return str(folder)
    if not names:
        raise _not_coco(path, 'it lists no image')
    raise UserError(f'{path} names the image {readable(names[0])}, which is in none of '
                    f'{", ".join(map(str, folders))}: unpack the images into one of them.')
