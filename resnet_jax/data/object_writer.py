"""Writes images with objects in the layout of Pascal VOC or COCO, which many programs read.

Images are written first, and the lists of all splits last, so no reader takes what an interruption
leaves for a whole dataset.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from resnet_jax.data import decode
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.shard_writer import encoded, shrink
from resnet_jax.data.types import Source, Tree
from resnet_jax.data.voc import CORNERS, LISTS
from resnet_jax.errors import UserError
from resnet_jax.output import write_whole

CHUNK = 64  # images that a thread takes at a time
EXTENSIONS = {'JPEG': '.jpg', 'PNG': '.png', 'WEBP': '.webp'}
COCO_SPLITS = {'train': 'train2017', 'test': 'val2017'}  # in the names of files and folders
FORMATS = ('voc', 'coco')


class Written(NamedTuple):
    """An image that was written: its name and extension, its size, and its objects; or an error."""

    name: str
    extension: str
    height: int
    width: int
    target: Tree
    error: str = ''


def list_file(output: pathlib.Path, split: str, layout: str) -> pathlib.Path:
    """The file that lists a split, without which there is no split."""
    if layout == 'voc':
        return output / LISTS / f'{split}.txt'
    return output / 'annotations' / f'instances_{COCO_SPLITS[split]}.json'


def check(source: Source, split: str, output: pathlib.Path, layout: str) -> None:
    """Raises UserError where a source has no objects, or the split is there already."""
    if not hasattr(source, 'most_objects'):
        raise UserError(f'--format={layout} is for images with boxes, which this dataset does not '
                        'have; write shards instead.')
    if (path := list_file(output, split, layout)).exists():
        raise UserError(f'{path} exists already: give another --output, delete the dataset there, '
                        'or leave this split out with --splits.')


def write_images(source: Source, split: str, output: pathlib.Path, layout: str, *,
                 shorter_side: int, quality: int, threads: int,
                 skip_unreadable: bool) -> list[Written]:
    """Writes the images of a split, and in VOC's layout their annotations.

    Images are called as the split and their index, such as `train_000012`. Those that are encoded
    and not resized are copied, and pixels are saved as PNG.

    Args:
      source: of images with objects; see `resnet_jax.data.objects`.
      split: 'train' or 'test'.
      output: the folder of the dataset.
      layout: 'voc', where areas are not kept, and objects to be ignored are difficult; or 'coco',
        where they are crowds, and the images keep their ids.
      shorter_side, quality: see `resnet_jax.data.shard_writer.shrink`.
      threads: that decode and write.
      skip_unreadable: leave out damaged images instead of an error.

    Returns:
      What was written, and what was left out, for `write_list`.

    Raises:
      UnreadableImageError: an image is damaged.
    """
    names = class_names(source)
    folder = output / ('JPEGImages' if layout == 'voc' else COCO_SPLITS[split])
    for path in (folder, output / 'Annotations') if layout == 'voc' else (folder,):
        path.mkdir(parents=True, exist_ok=True)

    def write_one(index: int) -> Written:
        name = f'{split}_{index:06d}'
        try:
            item = shrink(encoded(source[index]), shorter_side, quality)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            return Written(name, '', 0, 0, {}, str(error))
        extension = EXTENSIONS[decode.image_format(item.image)]
        height, width = decode.image_size(item.image, item.name)
        target = {**item.target, 'id': int(item.target.get('id', index))}
        write_whole(folder / (name + extension), item.image)
        written = Written(name, extension, height, width, target)
        if layout == 'voc':
            write_whole(output / 'Annotations' / f'{name}.xml', annotation_xml(written, names))
        return written

    return list(tqdm(_in_threads(write_one, len(source), threads), total=len(source),
                     desc=f'{split}: write', unit=' images'))


def write_list(written: Sequence[Written], source: Source, split: str, output: pathlib.Path,
               layout: str) -> None:
    """Lists the images that `write_images` has written, in COCO's layout with their annotations.

    Raises:
      UserError: ids occur twice.
    """
    good = [image for image in written if not image.error]
    if layout == 'voc':
        content = ''.join(f'{image.name}\n' for image in good)
    else:
        content = instances_json(good, class_names(source), category_ids(source))
    path = list_file(output, split, layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def class_names(source: Source) -> list[str]:
    """The names of the classes, or their numbers where they have none."""
    return list(source.class_names) or [str(i) for i in range(source.num_classes)]


def category_ids(source: Source) -> list[int]:
    """By which the dataset itself calls the classes, or numbers from 1."""
    ids = getattr(source, 'category_ids', range(1, len(class_names(source)) + 1))
    return [int(identity) for identity in ids]


def annotation_xml(written: Written, names: Sequence[str]) -> bytes:
    """An annotation as in VOC, where pixels are counted from 1, and the last one is included.

    Coordinates that are not whole pixels are written as such; the reader gets equal boxes.
    """
    root = ElementTree.Element('annotation')

    def add(parent: ElementTree.Element, name: str, value: Any = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, name)
        element.text = None if value is None else str(value)
        return element

    add(root, 'folder', 'JPEGImages')
    add(root, 'filename', written.name + written.extension)
    size = add(root, 'size')
    for side, value in (('width', written.width), ('height', written.height), ('depth', 3)):
        add(size, side, value)
    target = written.target
    boxes = np.array(target['boxes'], float).reshape(-1, 4)
    boxes[:, :2] += 1
    for box, label, ignore in zip(boxes, target['classes'], target['ignore'], strict=True):
        entry = add(root, 'object')
        for name, value in (('name', names[label]), ('pose', 'Unspecified'), ('truncated', 0),
                            ('difficult', int(ignore))):
            add(entry, name, value)
        corners = add(entry, 'bndbox')
        for corner, value in zip(CORNERS, box.tolist(), strict=True):
            add(corners, corner, int(value) if value.is_integer() else value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding='utf-8') + b'\n'


def instances_json(written: Sequence[Written], names: Sequence[str], ids: Sequence[int]) -> str:
    """The annotations of a split as in COCO.

    Raises:
      UserError: two images have the same id.
    """
    image_ids = [x.target['id'] for x in written]
    if len(set(image_ids)) < len(image_ids):
        raise UserError('two images of this dataset have the same id, by which COCO tells them '
                        'apart: write --format=voc or shards.')
    annotations = []
    for image in written:
        target = image.target
        boxes = np.asarray(target['boxes'], float).reshape(-1, 4)
        for box, label, ignore, area in zip(
                np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist(),
                target['classes'], target['ignore'], target['areas'], strict=True):
            annotations.append({
                'id': len(annotations) + 1, 'image_id': target['id'], 'category_id': ids[label],
                'bbox': box, 'area': float(area), 'iscrowd': int(ignore)})
    return json.dumps({
        'info': {'description': 'written by resnet_jax.data.prepare'},
        'images': [{'id': image.target['id'], 'file_name': image.name + image.extension,
                    'height': image.height, 'width': image.width} for image in written],
        'annotations': annotations,
        'categories': [{'id': identity, 'name': name}
                       for identity, name in zip(ids, names, strict=True)]})


def _in_threads(function, count: int, threads: int) -> Iterator[Written]:
    """function(0), function(1), …, in order."""
    def chunk(start: int) -> list[Written]:
        return [function(i) for i in range(start, min(start + CHUNK, count))]

    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(chunk, range(0, count, CHUNK)):
            yield from results
