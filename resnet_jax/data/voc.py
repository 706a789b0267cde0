"""Reads the layout of Pascal VOC: an XML file per image, and lists of images.

A folder holds `Annotations`, `JPEGImages` and `ImageSets/Main`; or it is a `VOCdevkit`, which holds
such a folder per year. Coordinates in the files count pixels from 1 and include the last one.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data import masks as masks_lib
from resnet_jax.data.boxes import Boxes, Checked, Objects
from resnet_jax.data.folder import EXTENSIONS
from resnet_jax.data.masks import RLE
from resnet_jax.data.types import Tree
from resnet_jax.errors import UserError, readable
from resnet_jax.output import warn

ON_DISK = True
LAYOUT = 'Annotations, JPEGImages and ImageSets/Main, or a folder of these per year'
LISTS = pathlib.Path('ImageSets', 'Main')
FIELDS = {'train': 'data.train_list', 'test': 'data.eval_list'}
DEFAULTS = {'train': ('trainval', 'train'), 'test': ('test', 'val')}
VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class Listed(NamedTuple):
    """An image in a list: the folder of its year, and its name without an extension."""

    folder: pathlib.Path
    name: str

    @property
    def annotation(self) -> str:
        return readable(str(self.folder / 'Annotations' / f'{self.name}.xml'))


class Annotation(NamedTuple):
    """What an XML file holds: the image's height and width, and its objects as they stand there."""

    size: tuple[int, int]
    names: list[str]
    corners: list[tuple[float, ...]]
    difficult: list[bool]


def create(config: ConfigDict, split: str) -> Boxes:
    """See `resnet_jax.data.registry`; reads `path`, `train_list`, `eval_list` and `bad_boxes`.

    With `model.detector.masks`, it also reads the folder SegmentationObject.
    """
    lists = _lists(config, split)
    images = {name: _read_lists(files) for name, files in lists.items()}
    annotations = {name: [_parse(image) for image in listed] for name, listed in images.items()}
    both = set(images.get('train', ())) & set(images['test']) if split == 'test' else ()
    if both:
        warn(f'{len(both):,} of {len(images["test"]):,} images of the evaluation are training '
             'images too; set data.train_list or data.eval_list.')
    listed_in = ' and '.join(map(str, lists[split]))
    files = _image_files(images[split], listed_in)
    _check_sizes(images[split], annotations[split], files)
    class_names = _class_names(annotations)
    objects, checked = _objects(images[split], annotations[split], class_names,
                                config.data.bad_boxes)
    masks = None
    if config.model.detector.masks:
        masks = functools.partial(_masks, images[split], _numbers(annotations[split], checked))
    return Boxes(
        files, [os.path.basename(file) for file in files], np.arange(len(files)),
        np.array([annotation.size for annotation in annotations[split]]), objects, class_names,
        listed_in=listed_in, checked=checked, masks=masks)


def _numbers(annotations: Sequence[Annotation], checked: Checked) -> list[np.ndarray]:
    """The numbers from 1 that the kept objects of each image have in its file."""
    counts = [len(annotation.names) for annotation in annotations]
    kept = np.split(checked.keep, np.cumsum(counts)[:-1])
    return [np.flatnonzero(mine) + 1 for mine in kept]


def _masks(images: Sequence[Listed], numbers: Sequence[np.ndarray], index: int) -> list[RLE]:
    """The masks of the objects of an image, which `SegmentationObject` numbers as its XML file."""
    path = images[index].folder / 'SegmentationObject' / f'{images[index].name}.png'
    try:
        with Image.open(path) as image:
            return masks_lib.of_instances(np.asarray(image), numbers[index])
    except (OSError, SyntaxError) as error:
        raise UserError(f'{readable(str(path))} is missing or damaged: name lists of images that '
                        'have masks in data.train_list and data.eval_list, or set '
                        'model.detector.masks to false.') from error


def count_classes(config: ConfigDict) -> int:
    """Counts the classes without looking at the images."""
    lists = _lists(config, 'train')
    return len(_class_names({name: [_parse(image) for image in _read_lists(files)]
                             for name, files in lists.items()}))


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: here of one object."""
    return boxes_lib.example_target(config.model.detector.masks)


def _lists(config: ConfigDict, split: str) -> dict[str, list[pathlib.Path]]:
    """The files of lists of both splits; without the other split where it has no default.

    Raises:
      UserError: there are no such lists.
    """
    data = config.data
    fields = {'train': data.train_list, 'test': data.eval_list}
    root = boxes_lib.dataset_folder(data.path, LAYOUT)
    found = {}
    for name, field in fields.items():
        try:
            found[name] = _named_lists(root, name, field) if field else [_default_list(root, name)]
        except UserError:
            if name == split or field:
                raise
    return found


def _named_lists(root: pathlib.Path, split: str, field: str) -> list[pathlib.Path]:
    files = []
    for part in field.split('+'):
        year, _, name = part.strip().rpartition('/')
        files.append(root / year / LISTS / f'{name}.txt')
        if not files[-1].is_file():
            raise UserError(f'{FIELDS[split]} names the list {part.strip()!r}, but {files[-1]} is '
                            'missing; name lists such as trainval, or VOC2007/trainval in a folder '
                            'of several years, joined by +.')
    return files


def _default_list(root: pathlib.Path, split: str) -> pathlib.Path:
    years = sorted(file.name for file in root.iterdir() if (file / LISTS).is_dir())
    if not (root / LISTS).is_dir() and len(years) > 1:
        raise UserError(f'{root} holds {" and ".join(years)}: set {FIELDS[split]} to lists of one '
                        f'or several, such as {"+".join(f"{x}/trainval" for x in years)}.')
    folder = root if (root / LISTS).is_dir() or not years else root / years[0]
    for name in DEFAULTS[split]:
        if (folder / LISTS / f'{name}.txt').is_file():
            return folder / LISTS / f'{name}.txt'
    raise UserError(f'{folder / LISTS} has no list {" or ".join(DEFAULTS[split])}: unpack the '
                    f'dataset there, or set {FIELDS[split]} to another list.')


def _read_lists(files: Sequence[pathlib.Path]) -> list[Listed]:
    """The images of some lists, of which each line may say more after the name of an image."""
    images = [Listed(file.parents[2], line.split()[0]) for file in files
              for line in os.fsdecode(file.read_bytes()).splitlines() if line.strip()]
    listed_in, seen = ' and '.join(map(str, files)), set()
    if not images:
        raise UserError(f'{listed_in} names no images; write the name of one into each line.')
    for image in images:
        if image in seen:
            raise UserError(f'{listed_in} names the image {readable(image.name)} twice; remove one '
                            'of the lines, or the list that has it too.')
        seen.add(image)
    return images


def _parse(image: Listed) -> Annotation:
    """Reads an XML file; raises UserError where it is missing or not as VOC's."""
    path = image.annotation
    try:
        root = ElementTree.parse(image.folder / 'Annotations' / f'{image.name}.xml').getroot()
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; unpack the annotations of all '
                        'listed images there, or set data.train_list and data.eval_list to lists '
                        'that have them.') from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also: of encodings
        raise UserError(f'{path} is cut short or not XML: {error}; copy it again.') from error
    what = 'size'
    try:
        annotation = Annotation(tuple(int(root.findtext(f'size/{side}'))
                                      for side in ('height', 'width')), [], [], [])
        for i, entry in enumerate(root.findall('object'), 1):
            what = f'object {i}'
            annotation.names.append(entry.findtext('name').strip())
            annotation.corners.append(tuple(float(entry.findtext(f'bndbox/{corner}'))
                                            for corner in CORNERS))
            annotation.difficult.append(bool(int(entry.findtext('difficult') or 0)))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{path} is not an annotation as in VOC: its {what} is incomplete; correct '
                        'it, or remove the image from the list.') from error
    return annotation


def _image_files(images: Sequence[Listed], listed_in: str) -> list[str]:
    """The paths of images, whose extensions the lists leave out."""
    found = {}
    for folder in {image.folder / 'JPEGImages' for image in images}:
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.suffix.lower() in EXTENSIONS:
                found[folder.parent, file.stem] = str(file)
    for image in images:
        if image not in found:
            raise UserError(f'{listed_in} names the image {readable(image.name)}, which is missing '
                            f'in {image.folder / "JPEGImages"}: unpack all images there, or remove '
                            'this one from the list.')
    return [found[image] for image in images]


def _check_sizes(images: Sequence[Listed], annotations: Sequence[Annotation],
                 files: Sequence[str]) -> None:
    """Raises UserError where the size of an image is not what its annotation states."""
    sizes = boxes_lib.in_threads(boxes_lib.header_size, files)
    for image, annotation, file, size in zip(images, annotations, files, sizes, strict=True):
        if size is not None:  # whoever decodes a damaged image reports or skips it
            boxes_lib.check_size(readable(file), size, annotation.size,
                                 f'{image.annotation} states')


def _class_names(annotations: dict[str, list[Annotation]]) -> list[str]:
    """The names in the order of the classes."""
    names = {name for split in annotations.values() for annotation in split
             for name in annotation.names}
    return list(VOC_CLASSES) if names <= set(VOC_CLASSES) else sorted(names)


def _objects(images: Sequence[Listed], annotations: Sequence[Annotation],
             class_names: Sequence[str], bad_boxes: str) -> tuple[Objects, Checked]:
    """The objects of a split, numbered from 1 within a file in error messages."""
    counts = np.array([len(annotation.names) for annotation in annotations])
    of_image, starts = np.repeat(np.arange(len(images)), counts), np.cumsum(counts) - counts
    names = [name for annotation in annotations for name in annotation.names]
    corners = np.array([box for annotation in annotations for box in annotation.corners])

    def describe(i: int) -> str:
        box = ', '.join(f'{corner} {value:g}' for corner, value in zip(CORNERS, corners[i],
                                                                       strict=True))
        return (f'{images[of_image[i]].annotation}: object {i - starts[of_image[i]] + 1} '
                f'({names[i]}; {box})')

    sizes = np.array([annotation.size for annotation in annotations])[of_image]
    # Of a box with xmin = xmax the devkit would say that it is a pixel wide; it is a mistake.
    checked = boxes_lib.check_boxes(corners.reshape(-1, 4) - (1, 1, 0, 0), sizes, describe,
                                    bad_boxes, least_side=1)
    boxes, keep = checked.boxes, checked.keep
    index = {name: i for i, name in enumerate(class_names)}
    return Objects(
        counts=np.bincount(of_image[keep], minlength=len(images)), boxes=boxes[keep],
        classes=np.array([index[name] for name in names], np.int32)[keep],
        ignore=np.array([x for annotation in annotations for x in annotation.difficult],
                        bool)[keep],
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[keep]), checked
