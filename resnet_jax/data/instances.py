"""Images with maps of instances: objects of one class, each with a mask.

A folder holds `images/NAME.png`, `labels/NAME.png` and `index.tsv`. A label is the number of the
object that a pixel shows, from 1, or 0 for the background. The columns `name` and `split` of the
index are read; a split is 'train' or 'val'. The folder's name is that of the class.
"""

import csv
import os
import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import masks
from resnet_jax.data.boxes import Boxes, Checked, Objects
from resnet_jax.data.types import Tree
from resnet_jax.errors import UserError, readable

ON_DISK = True
LAYOUT = 'images, labels and index.tsv'
SPLITS = {'train': 'train', 'test': 'val'}


def create(config: ConfigDict, split: str) -> Boxes:
    """See `resnet_jax.data.registry`; reads `data.path` and `model.detector.masks`.

    All maps are read at once; their boxes and run lengths stay in memory.
    """
    root = boxes_lib.dataset_folder(config.data.path, LAYOUT)
    names = _names(root, SPLITS[split])
    found = boxes_lib.in_threads(_read, [root / 'labels' / f'{name}.png' for name in names])
    sizes, boxes, areas, runs = zip(*found, strict=True)
    boxes = np.concatenate(boxes)
    objects = Objects(np.array([len(part) for part in areas]), boxes,
                      np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool),
                      np.concatenate(areas))
    files = [os.path.join(root, 'images', f'{name}.png') for name in names]
    return Boxes(
        files, [f'{name}.png' for name in names], np.arange(len(files)), np.array(sizes), objects,
        [root.resolve().name], listed_in=str(root / 'index.tsv'),
        checked=Checked(boxes, np.ones(len(boxes), bool)),
        masks=runs.__getitem__ if config.model.detector.masks else None)


def count_classes(config: ConfigDict) -> int:
    """Always one."""
    del config
    return 1


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: here of one object."""
    return boxes_lib.example_target(config.model.detector.masks)


def _names(root: pathlib.Path, split: str) -> list[str]:
    path = root / 'index.tsv'
    try:
        with open(path, newline='') as file:
            names = [row['name'] for row in csv.DictReader(file, delimiter='\t')
                     if row['split'] == split]
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; data.path must be a folder with '
                        f'{LAYOUT}.') from error
    except (KeyError, UnicodeError) as error:
        raise UserError(f'{path} must be a table with the columns name and split, separated by '
                        'tabs.') from error
    if not names:
        raise UserError(f'{path} names no image of the split {split}; write train or val into its '
                        'column split.')
    return names


def _read(path: pathlib.Path):
    """Size, boxes, areas and run lengths of the objects in a map."""
    try:
        with Image.open(path) as image:
            instances = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f'{readable(str(path))} is missing, or not a PNG file; copy the labels of '
                        'all images there.') from error
    if instances.ndim != 2:
        raise UserError(f'{readable(str(path))} must have one channel, the number of the object.')
    numbers = np.unique(instances[instances > 0])
    height, width = instances.shape
    runs = masks.of_instances(instances, numbers)
    rows, columns = np.nonzero(instances)
    index = np.searchsorted(numbers, instances[rows, columns])
    boxes = np.stack([np.full(len(numbers), big) for big in (width, height, 0, 0)], 1)
    for axis, values in enumerate((columns, rows)):
        np.minimum.at(boxes[:, axis], index, values)
        np.maximum.at(boxes[:, axis + 2], index, values + 1)
    return ((height, width), boxes.astype(np.float32),
            np.bincount(index, minlength=len(numbers)).astype(np.float32), runs)
