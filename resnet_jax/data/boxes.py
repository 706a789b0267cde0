"""Images with the boxes of their objects: one split of a dataset for object detection.

`resnet_jax.data.voc`, `coco` and `tfds_objects` read the formats, and keep what they read here.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from resnet_jax import storage
from resnet_jax.data.decode import UnreadableImageError, image_size
from resnet_jax.data.masks import RLE, from_counts
from resnet_jax.data.sources import digest
from resnet_jax.data.types import Item, Tree
from resnet_jax.errors import UserError, readable
from resnet_jax.output import warn

THREADS, CHUNK = 16, 256  # a network file system answers several requests side by side
HEADER_BYTES = 2**14  # of an image file, which mostly hold its size
MOST_OUTSIDE = 1  # pixels that a box may leave its image by, which annotation tools round to
IDS = (-2**31, 2**31 - 1)  # that int32 holds


class Objects(NamedTuple):
    """The objects of all images of a split, those of the first image first.

    Attributes:
      counts: int64 [N], the number of objects of each image.
      boxes: float32 [M, 4], xyxy in continuous pixels: pixel i covers [i, i + 1].
      classes: int32 [M], in [0, num_classes).
      ignore: bool [M], objects that an evaluation neither expects nor counts against a detector.
      areas: float32 [M], in pixels.
    """

    counts: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray


class Targets:
    """The targets of all images of a split, in memory.

    Attributes:
      objects: those of all images.
      ids: int32 [N], of the images.
      most_objects: the largest number of objects in an image.
    """

    def __init__(self, objects: Objects, ids: np.ndarray, listed_in: str):
        """Keeps the arrays; `listed_in` is the file that names the images.

        Raises:
          UserError: there is no object.
        """
        if not len(objects.boxes):
            raise UserError(f'{listed_in} lists {len(ids)} images without a single object: name '
                            'a list with annotated objects in data.train_list or data.eval_list.')
        self.objects, self.ids = objects, ids.astype(np.int32)
        self.most_objects = int(objects.counts.max())
        self._offsets = np.concatenate([[0], np.cumsum(objects.counts)])

    def __getitem__(self, index: int) -> Tree:
        """The objects of an image.

        Returns:
          'boxes' float32 [n, 4], 'classes' int32 [n], 'ignore' bool [n] and 'areas' float32 [n],
          as in `Objects`; 'id' int32.
        """
        mine = slice(self._offsets[index], self._offsets[index + 1])
        parts = {name: getattr(self.objects, name)[mine].copy()
                 for name in ('boxes', 'classes', 'ignore', 'areas')}
        return {**parts, 'id': self.ids[index]}


class Checked(NamedTuple):
    """What `check_boxes` finds.

    Attributes:
      boxes: float32 [M, 4], clipped to their images.
      keep: bool [M], the boxes with an area.
      outside, empty: a description of each box that leaves its image by more than a pixel, or has
        no area; with bad_boxes='report' only.
    """

    boxes: np.ndarray
    keep: np.ndarray
    outside: Sequence[str] = ()
    empty: Sequence[str] = ()


class Boxes:
    """One split; items hold the encoded files, and all objects are in memory.

    Attributes:
      fingerprint: of the classes, the objects, and every file's name and size.
      cache_key: changes with the files' times too.
      num_classes: classes are in [0, num_classes).
      class_names: in the order of the classes.
      category_ids: int32 [num_classes], by which the dataset itself calls the classes; only where
        it does.
      most_objects: the largest number of objects in an image.
      files: the paths of the images.
      objects: those of all images.
      sizes: int32 [N, 2], height and width of the images as the dataset states them.
      outside, empty: descriptions of left out boxes; see `Checked`.
    """

    def __init__(self, files: Sequence[str], names: Sequence[str], ids: np.ndarray,
                 sizes: np.ndarray, objects: Objects, class_names: Sequence[str], *,
                 listed_in: str, checked: Checked, category_ids: np.ndarray | None = None,
                 masks: Callable[[int], Sequence[RLE]] | None = None):
        """Looks up every file.

        Args:
          names: of the files, for the fingerprint, wherever they lie.
          files, ids, sizes, objects, class_names, category_ids: see the attributes.
          listed_in: the file that names the images, for error messages.
          checked: what `check_boxes` found.
          masks: (index of an image) -> the masks of its objects; None: items have no masks.

        Raises:
          UserError: an image is missing, or there is no object.
        """
        self.files = list(files)
        self.class_names, self.num_classes = tuple(map(readable, class_names)), len(class_names)
        self.sizes = sizes.astype(np.int32)
        self.objects = objects
        self.outside, self.empty = checked.outside, checked.empty
        if category_ids is not None:
            self.category_ids = category_ids.astype(np.int32)
        self._targets, self._masks = Targets(objects, ids, listed_in), masks
        self.most_objects = self._targets.most_objects
        stats = in_threads(_stat, self.files)
        if None in stats:
            raise UserError(f'{listed_in} names the image {readable(names[stats.index(None)])}, '
                            f'but {readable(self.files[stats.index(None)])} is missing: unpack '
                            'all images, or remove this one from the list.')
        num_bytes, modified = np.array(stats).T
        self.fingerprint = digest(
            tuple(class_names), () if category_ids is None else category_ids.tolist(),
            '\n'.join(names), num_bytes, self._targets.ids, self.sizes, *objects)
        self.cache_key = digest(self.fingerprint, modified)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        """An image file and its objects; see `target`.

        Raises:
          UserError: the file cannot be read, or is of another size than the dataset states.
        """
        name = readable(self.files[index])
        try:
            with open(self.files[index], 'rb', buffering=0) as file:  # read at once
                item = Item(file.read(), self.target(index) | self._with_masks(index), name)
        except OSError as error:
            raise UserError(f'{name} cannot be read: {error.strerror}; the data changed since '
                            'this run listed it.') from error
        try:
            found = image_size(item.image, name)
        except UnreadableImageError:
            return item  # whoever decodes it reports or skips it
        check_size(name, found, self.sizes[index], 'its annotations state')
        return item

    def _with_masks(self, index: int) -> Tree:
        return {} if self._masks is None else {'masks': self._masks(index)}

    def target(self, index: int) -> Tree:
        """The target of an image, without reading it and without masks; see `Targets`."""
        return self._targets[index]


def example_target(with_masks: bool | None = False) -> Tree:
    """The target of an image with one object."""
    target = {'boxes': np.zeros((1, 4), np.float32), 'classes': np.zeros(1, np.int32),
              'ignore': np.zeros(1, bool), 'areas': np.zeros(1, np.float32), 'id': np.int32(0)}
    return target | ({'masks': [from_counts([1], 1, 1)]} if with_masks else {})


def dataset_folder(path: str, layout: str) -> pathlib.Path:
    """The folder `data.path`.

    Args:
      path: the field.
      layout: what a sentence says that the folder holds.

    Raises:
      UserError: there is none.
    """
    if not path:
        raise UserError(f'data.path is not set; pass the folder of the dataset, which holds '
                        f'{layout}.')
    storage.check_not_in_bucket(path)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f'data.path must be the folder of the dataset, which holds {layout}, but '
                        f'{path!r} is not a folder.')
    return root


def check_boxes(boxes: np.ndarray, sizes: np.ndarray, describe: Callable[[int], str],
                bad_boxes: str, *, least_side: float = 0) -> Checked:
    """Clips boxes to their images, and picks those that have an area.

    Args:
      boxes: float64 [M, 4], xyxy in continuous pixels.
      sizes: [M, 2], height and width of the image of each box.
      describe: what an error message calls a box, by its index: a file and an object.
      bad_boxes: what is done with a box of no area: 'error'; 'skip' it and warn; or 'report' it,
        and also one that leaves its image, and keep neither.
      least_side: the sides of a box with an area, in pixels, are longer than this.

    Raises:
      UserError: a box leaves its image by more than a pixel, or has no area.
    """
    limits = sizes[:, [1, 0, 1, 0]]
    inside = ((boxes >= -MOST_OUTSIDE) & (boxes <= limits + MOST_OUTSIDE)).all(1)  # never of NaN
    if not inside.all() and bad_boxes != 'report':
        bad = int(np.argmin(inside))
        height, width = sizes[bad]
        raise UserError(f'{describe(bad)} leaves the image, which is {width} x {height} pixels, by '
                        'more than a pixel; correct the box or remove it.')
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    keep = ((boxes[:, 2:] - boxes[:, :2] > least_side).all(1)
            & (clipped[:, 2:] > clipped[:, :2]).all(1))
    if bad_boxes == 'report':
        outside, empty = np.flatnonzero(~inside), np.flatnonzero(inside & ~keep)
        return Checked(clipped, inside & keep, [describe(int(i)) for i in outside],
                       [describe(int(i)) for i in empty])
    if not keep.all():
        count, first = int((~keep).sum()), describe(int(np.argmin(keep)))
        if bad_boxes != 'skip':
            others = f' (one of {count:,} such boxes)' if count > 1 else ''
            raise UserError(f'{first} has no area{others}; correct the box, or pass '
                            '--bad_boxes=skip (when training, --config.data.bad_boxes=skip) to '
                            'leave such boxes out.')
        warn(f'left out {count:,} {"boxes" if count > 1 else "box"} of no area: {first}'
             + (', …' if count > 1 else '') + '.')
    return Checked(clipped, keep)


def check_size(name: str, found: Sequence[int], stated: Sequence[int], states: str) -> None:
    """Compares (height, width) of an image with what its annotations state.

    Raises:
      UserError: they differ.
    """
    if tuple(found) != tuple(stated):
        raise UserError(f'{name} has {found[1]} x {found[0]} pixels, but {states} {stated[1]} x '
                        f'{stated[0]}: the boxes would not fit; bring back the image that was '
                        'annotated.')


def header_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an image file, from its first bytes; None if it cannot be read."""
    try:
        with open(path, 'rb', buffering=0) as file:
            head = file.read(HEADER_BYTES)
            try:
                return image_size(head, path)
            except UnreadableImageError:  # a large thumbnail or colour profile comes first
                return image_size(head + file.readall(), path)
    except (OSError, UnreadableImageError):
        return None


def in_threads(function: Callable, values: Sequence) -> list:
    """[function(value) for value in values], for functions that wait for a disk."""
    chunks = [values[start:start + CHUNK] for start in range(0, len(values), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda chunk: [function(value) for value in chunk], chunks))
    return [result for chunk in results for result in chunk]


def _stat(path: str) -> tuple[int, int] | None:
    """(bytes, time of the last change in ns) of a file; None if it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
