"""Reads the layout of ILSVRC's classification and localization data (CLS-LOC).

A folder, such as `ILSVRC`, holds `Annotations/CLS-LOC/{train,val}` with an XML file for each
annotated image, in folders of classes or not, and beside it `Data/CLS-LOC/{train,val}` with the
images: `train/WNID/*.JPEG`, and `val/*.JPEG` or `val/WNID/*.JPEG`. The class of an image is what
its annotation names. Coordinates count pixels from 0 and include the last one. Images without a
box, which are half of ILSVRC's for training, are left out.
"""

import os
import pathlib
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import folder, labelled_boxes
from resnet_jax.data.labelled_boxes import LabelledBoxes
from resnet_jax.data.types import Tree
from resnet_jax.errors import UserError, readable
from resnet_jax.output import say

ON_DISK = True
LAYOUT = 'Annotations/CLS-LOC and Data/CLS-LOC, each with train and val'
PART = 'CLS-LOC'
FOLDERS = {'train': 'train', 'test': 'val'}
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class Annotation(NamedTuple):
    """What an XML file holds: (height, width), the class, and its boxes in continuous pixels."""

    size: tuple[int, int]
    wnid: str
    boxes: list[tuple[float, ...]]


def create(config: ConfigDict, split: str) -> LabelledBoxes:
    """See `resnet_jax.data.registry`; reads `path`, `class_list` and `bad_boxes`."""
    data = config.data
    root = boxes_lib.dataset_folder(data.path, LAYOUT)
    annotated = root / 'Annotations' / PART / FOLDERS[split]
    images = root / 'Data' / PART / FOLDERS[split]
    for place in (annotated, images):
        if not place.is_dir():
            raise UserError(f'{place} is missing: data.path must be a folder that holds {LAYOUT}.')
    class_names = _class_names(config)
    annotations, files = _files(annotated, ('.xml',)), _files(images, folder.EXTENSIONS)
    names = sorted(set(annotations) & set(files), key=lambda name: str(files[name]))
    say(f'{annotated}: boxes for {len(names):,} of {len(files):,} images; the others are left out')
    parsed = boxes_lib.in_threads(_parse, [annotations[name] for name in names])
    index = {name: i for i, name in enumerate(class_names)}
    for annotation, name in zip(parsed, names, strict=True):
        if annotation.wnid not in index:
            raise UserError(f'{readable(str(annotations[name]))} names the class '
                            f'{annotation.wnid!r}, which is not among the {len(index)} classes of '
                            f'{data.class_list or "the training images"}.')
    boxes = [box for annotation in parsed for box in annotation.boxes]
    return LabelledBoxes(
        [str(files[name]) for name in names], names,
        np.array([annotation.size for annotation in parsed]).reshape(-1, 2),
        np.array([index[annotation.wnid] for annotation in parsed], int),
        np.array([len(annotation.boxes) for annotation in parsed], int),
        np.array(boxes).reshape(-1, 4), class_names, listed_in=str(annotated),
        bad_boxes=data.bad_boxes)


def count_classes(config: ConfigDict) -> int:
    """Counts the classes without looking at the images."""
    return len(_class_names(config))


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: here of one box."""
    del config
    return labelled_boxes.example_target()


def _class_names(config: ConfigDict) -> list[str]:
    """The classes in label order: of `data.class_list`, or the folders of training images."""
    root = boxes_lib.dataset_folder(config.data.path, LAYOUT)
    return folder.class_names(str(root / 'Data' / PART), config.data.class_list)


def _files(place: pathlib.Path, extensions: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The files in a folder and in its folders, by their names without an extension."""
    found = {}
    for parent, _, names in os.walk(place):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in extensions:
                found[stem] = pathlib.Path(parent, name)
    return found


def _parse(path: pathlib.Path) -> Annotation:
    """Reads an XML file; raises UserError where it is not as ILSVRC's."""
    try:
        root = ElementTree.parse(path).getroot()
        objects = root.findall('object')
        names = [entry.findtext('name').strip() for entry in objects]
        corners = [[float(entry.findtext(f'bndbox/{corner}')) for corner in CORNERS]
                   for entry in objects]
        size = tuple(int(root.findtext(f'size/{side}')) for side in ('height', 'width'))
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{readable(str(path))} is not an annotation as in ILSVRC: {error}; copy '
                        'it again, or remove it.') from error
    if not names:
        raise UserError(f'{readable(str(path))} names no object; remove it.')
    return Annotation(size, names[0], [
        (x1, y1, x2 + 1, y2 + 1) for name, (x1, y1, x2, y2) in zip(names, corners, strict=True)
        if name == names[0]])
