"""Reads an image folder beside a table of boxes, `boxes.tsv`.

The images lie in `root/split/class/image`, as for the source 'folder'. The table has a line for
each box, with columns divided by tabs: `file`, the path of the image below the root, and `xmin`,
`ymin`, `xmax` and `ymax`, which count pixels from 0 and include the last one. Its first line names
the columns. Images without a box are left out.
"""

import csv
import os
import pathlib

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import folder, labelled_boxes
from resnet_jax.data.labelled_boxes import LabelledBoxes
from resnet_jax.data.types import Tree
from resnet_jax.errors import UserError, readable
from resnet_jax.output import warn

ON_DISK = True
TABLE = 'boxes.tsv'
COLUMNS = ('file', 'xmin', 'ymin', 'xmax', 'ymax')


def create(config: ConfigDict, split: str) -> LabelledBoxes:
    """See `resnet_jax.data.registry`; reads `path`, `class_list` and `bad_boxes`."""
    data = config.data
    root = boxes_lib.dataset_folder(data.path, f'{TABLE} and image folders')
    images = folder.open_folder(data.path, split, data.class_list)
    table = root / TABLE
    corners = read_table(table)
    files = [images.file(i) for i in range(len(images))]
    names = [pathlib.PurePath(os.path.relpath(file, root)).as_posix() for file in files]
    rows = [corners.get(name, []) for name in names]
    without = sum(not row for row in rows)
    if without:
        warn(f'left out {without:,} of {len(rows):,} images without a box in {table}.')
    chosen = [i for i, row in enumerate(rows) if row]
    files = [files[i] for i in chosen]
    sizes = boxes_lib.in_threads(boxes_lib.header_size, files)
    if None in sizes:
        raise UserError(f'{readable(files[sizes.index(None)])} cannot be read as an image: replace '
                        f'it, or remove it and its boxes from {table}.')
    boxes = np.array([box for i in chosen for box in rows[i]], np.float64).reshape(-1, 4)
    return LabelledBoxes(
        files, [names[i] for i in chosen], np.array(sizes).reshape(-1, 2), images.labels[chosen],
        np.array([len(rows[i]) for i in chosen], int), boxes, images.class_names,
        listed_in=str(table), bad_boxes=data.bad_boxes)


def count_classes(config: ConfigDict) -> int:
    """Counts the classes without looking at the images."""
    return folder.count_classes(config)


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: here of one box."""
    del config
    return labelled_boxes.example_target()


def read_table(path: pathlib.Path) -> dict[str, list[tuple[float, ...]]]:
    """The boxes of each file, xyxy in continuous pixels.

    Raises:
      UserError: there is no such table, or a line of it is wrong.
    """
    boxes: dict[str, list[tuple[float, ...]]] = {}
    try:
        with open(path, encoding='utf-8', newline='') as file:
            reader = csv.DictReader(file, delimiter='\t')
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(f'the first line of {path} must name the columns '
                                f'{", ".join(COLUMNS)}, divided by tabs.')
            for row in reader:
                try:
                    x1, y1, x2, y2 = (float(row[name]) for name in COLUMNS[1:])
                except (TypeError, ValueError) as error:
                    raise UserError(f'line {reader.line_num} of {path} must have four numbers '
                                    'after the file.') from error
                boxes.setdefault(row['file'], []).append((x1, y1, x2 + 1, y2 + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read as text; it lists the boxes of the images, see '
                        'resnet_jax/data/box_table.py.') from error
    return boxes
