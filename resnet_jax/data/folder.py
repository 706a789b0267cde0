"""Reads image folders: `root/split/class/image`, and ImageNet's flat validation folder.

A folder `root/class/image` without splits is a training split. The classes are the subfolders of
the training split, sorted by name unless a class list gives another order. Images are sorted by
name within a class.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import storage
from resnet_jax.data.sources import digest
from resnet_jax.data.types import Item, Tree
from resnet_jax.errors import UserError, readable
from resnet_jax.output import warn

EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp')  # in upper or lower case
# Of images that are not read; they are left out with a warning, other files without one.
OTHER_EXTENSIONS = (
    '.gif', '.apng', '.bmp', '.tif', '.tiff', '.heic', '.heif', '.avif', '.jp2', '.jxl', '.ppm',
    '.pgm', '.pbm', '.pnm', '.tga', '.psd', '.dcm', '.dng', '.cr2', '.nef', '.arw')
LAYOUT = 'train/CLASS/IMAGE and val/CLASS/IMAGE, or as CLASS/IMAGE'
SPLIT_NAMES = {'train': ('train', 'training'), 'test': ('test', 'val', 'validation', 'valid')}
LISTING_THREADS = 16  # the folders of a network file system are listed side by side
ON_DISK = True


class File(NamedTuple):
    """An image file, relative to its split's folder."""

    path: str
    size: int
    modified: int


class Folder:
    """One split of an image folder; items hold the encoded files.

    Attributes:
      num_classes: labels are in [0, num_classes).
      class_names: of the labels, in order, with \\xNN for bytes that are not UTF-8.
      fingerprint: of the classes, and of every file's name and size.
      cache_key: changes with the files' times too.
      labels: int32 [N].
    """

    def __init__(self, root: pathlib.Path, files: Sequence[File], labels: np.ndarray,
                 class_names: Sequence[str]):
        self._root, self._paths = str(root), [file.path for file in files]
        self.labels = labels.astype(np.int32)
        self.class_names = tuple(map(readable, class_names))
        self.num_classes = len(class_names)
        sizes = np.array([file.size for file in files])
        self.fingerprint = digest(tuple(class_names), '\n'.join(self._paths), sizes, self.labels)
        self.cache_key = digest(self.fingerprint, np.array([file.modified for file in files]))

    def __len__(self) -> int:
        return len(self._paths)

    def file(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self._root, self._paths[index])

    def __getitem__(self, index: int) -> Item:
        path = self.file(index)
        name = readable(path)
        try:
            with open(path, 'rb', buffering=0) as file:  # read at once
                return Item(file.read(), {'label': self.labels[index]}, name)
        except OSError as error:
            raise UserError(f'{name} cannot be read: {error.strerror}; the data changed since '
                            'this run listed it.') from error


def create(config: ConfigDict, split: str) -> Folder:
    """See `resnet_jax.data.registry`; reads `path`, `class_list` and `label_file`."""
    data = config.data
    return open_folder(data.path, split, data.class_list, data.label_file)


def count_classes(config: ConfigDict) -> int:
    """Counts the classes without listing the images."""
    return len(class_names(config.data.path, config.data.class_list))


def has_test(config: ConfigDict) -> bool:
    """Whether there is an evaluation split; also true where there is no folder at all."""
    root = pathlib.Path(config.data.path).expanduser()
    return not root.is_dir() or any((root / name).is_dir() for name in SPLIT_NAMES['test'])


def example_target(config: ConfigDict) -> Tree:
    """Returns the target of any item: a class."""
    del config
    return {'label': np.int32(0)}


def open_folder(path: str, split: str, class_list: str = '', label_file: str = '') -> Folder:
    """The split 'train' or 'test' of an image folder.

    Args:
      path: the root, which holds a folder for each split. The evaluation split may be called test,
        val or validation.
      split: 'train' or 'test'.
      class_list: '' or a file that names one class per line, in label order. In a line with tabs,
        an index may come first and a description last.
      label_file: '' or a file for an evaluation split without class folders; see `_flat`.

    Raises:
      UserError: something is missing, empty or contradicts the class list.
    """
    folder = _split_folder(path, split)
    try:
        classes = class_names(path, class_list)
    except UserError:
        if class_list:
            raise
        classes = _class_folders(folder)  # there is no training split
    if split == 'test' and label_file:
        return _flat(folder, classes, label_file)
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(f'{folder} holds the class {unknown[0]!r}, which is not among the '
                        f'{len(classes)} classes of '
                        f'{class_list or "the training split"}.')
    if not classes:
        raise UserError(f'{folder} holds no class folders; images must lie in split/class/image, '
                        'or, for a flat evaluation split, data.label_file must name their labels.')
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listed = list(pool.map(lambda name: _listed(folder, name), classes))
    found = [images for images, _ in listed]
    _warn_once(left_out(folder, [name for _, others in listed for name in others]))
    for name, images in zip(classes, found, strict=True):
        # A list may know more classes than a part of a dataset holds.
        if not images and not class_list:
            raise UserError(f'the class {name!r} has no images (JPEG, PNG or WebP) in {folder}; '
                            'add some, or remove it from both splits.')
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in found])
    return Folder(folder, [file for images in found for file in images], labels, classes)


def class_names(path: str, class_list: str = '') -> list[str]:
    """The names of the classes in label order.

    The training split names the classes of both, so that a label means the same in both.

    Args:
      path: the root of the image folder.
      class_list: '' or a file that names them.

    Raises:
      UserError: there is no such file, or no training split.
    """
    return read_class_list(class_list) if class_list else _class_folders(
        _split_folder(path, 'train'))


def read_class_list(path: str) -> list[str]:
    """Class names, one per line: the first column, or the second after a column of indices."""
    names = []
    for i, line in enumerate(_lines(path, 'data.class_list')):
        columns = line.split('\t')
        names.append(columns[1 if len(columns) > 1 and columns[0] == str(i) else 0].strip())
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'{path} names the class {twice!r} twice.')
    return names


def _flat(folder: pathlib.Path, classes: Sequence[str], label_file: str) -> Folder:
    """A split whose images lie in one folder, with a file of labels.

    Each line of the file is `image label`, or only `label`, for the images in the order of their
    names. A label is a class's name or its index from 0 in the order of the classes.
    """
    images, others = _listed(folder, '')
    _warn_once(left_out(folder, others))
    lines = [line.split() for line in _lines(label_file, 'data.label_file')]
    if any(len(line) > 2 for line in lines):
        raise UserError(f'{label_file} must have lines `image label`, or only `label`.')
    if lines and len(lines[0]) == 2:
        by_name = {pathlib.PurePath(line[0]).stem: line[-1] for line in lines}
        missing = [x.path for x in images if pathlib.PurePath(x.path).stem not in by_name]
        if missing:
            raise UserError(f'{label_file} has no label for {missing[0]}.')
        names = [by_name[pathlib.PurePath(x.path).stem] for x in images]
    else:
        names = [line[0] for line in lines]
    if not images or len(names) != len(images):
        raise UserError(f'{label_file} has {len(names)} labels, but {folder} has {len(images)} '
                        'images.')
    index = {name: i for i, name in enumerate(classes)}
    index |= {str(i): i for i in range(len(classes)) if str(i) not in index}
    for image, name in zip(images, names, strict=True):
        if name not in index:
            raise UserError(f'the label {name!r} of {image.path} in {label_file} is not one of '
                            f'the {len(classes)} classes, nor an index below that.')
    return Folder(folder, images, np.array([index[name] for name in names]), classes)


def _split_folder(path: str, split: str) -> pathlib.Path:
    root = pathlib.Path(path).expanduser()
    if not path:
        raise UserError('data.path is not set; pass the folder of the dataset, which holds the '
                        f'images as {LAYOUT}.')
    storage.check_not_in_bucket(path)
    if not root.is_dir():
        raise UserError('data.path must be the folder of the dataset, which holds the images as '
                        f'{LAYOUT}, but {path} is not a folder; correct the path.')
    for name in SPLIT_NAMES[split]:
        if (root / name).is_dir():
            return root / name
    if split == 'train' and _holds_classes(root):
        return root
    if split == 'train' and not _holds_splits(root):
        folders = _class_folders(root)
        empty = [name for name in folders if not _images(root, name)]
        if len(empty) < len(folders):
            raise UserError(f'the folder {readable(str(root / empty[0]))} holds no images (JPEG, '
                            'PNG or WebP); add some, or remove it.')
        if others := left_out(root, [x for name in folders for x in _listed(root, name)[1]]):
            raise UserError(others)
        raise UserError(f'{root} has no folder {" or ".join(SPLIT_NAMES[split])}, nor images '
                        f'(JPEG, PNG or WebP) in folders of classes; arrange them as {LAYOUT}.')
    how = (f'arrange the images as {LAYOUT}.' if split == 'train' else
           'move some images of each class there, or hold out training images with '
           '--config.data.eval_split=auto.')
    raise UserError(f'{root} has no folder {" or ".join(SPLIT_NAMES[split])}: ' + how)


def _holds_classes(root: pathlib.Path) -> bool:
    """Whether a folder has no splits, but classes: every folder in it holds images."""
    folders = _class_folders(root)
    return bool(folders) and not _holds_splits(root) and all(
        _images(root, name) for name in folders)


def _holds_splits(root: pathlib.Path) -> bool:
    return any((root / name).is_dir() for names in SPLIT_NAMES.values() for name in names)


def _class_folders(folder: pathlib.Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(x.name for x in entries if x.is_dir() and not hidden(x.name))


def _images(folder: pathlib.Path, name: str) -> list[File]:
    """The image files in a class's folder, sorted by name; none where there is no such folder."""
    return _listed(folder, name)[0]


def _listed(folder: pathlib.Path, name: str) -> tuple[list[File], list[str]]:
    """As `_images`, and the names of the images with `OTHER_EXTENSIONS`."""
    if not (folder / name).is_dir():
        return [], []
    with os.scandir(folder / name) as entries:
        entries = [x for x in entries if not hidden(x.name)]
    files = [(x.name, x.stat()) for x in entries if x.name.lower().endswith(EXTENSIONS)]
    return (sorted(File(os.path.join(name, x), stat.st_size, stat.st_mtime_ns)
                   for x, stat in files),
            [x.name for x in entries if x.name.lower().endswith(OTHER_EXTENSIONS)])


def hidden(name: str) -> bool:
    """Whether a file or folder is ignored, such as the `._x.jpg` that macOS puts beside x.jpg."""
    return name.startswith('.')


def left_out(folder: str | pathlib.Path, names: Iterable[str]) -> str | None:
    """The sentence on images with other endings than those that are read; None without any.

    Args:
      folder: where the files lie.
      names: of files of any kind.
    """
    found = (pathlib.PurePath(name).suffix.lower() for name in names)
    counts = collections.Counter(x for x in found if x in OTHER_EXTENSIONS)
    if not counts:
        return None
    kinds = ', '.join(f'{count:,} {extension}' for extension, count in counts.most_common())
    return (f'{readable(str(folder))}: left out images that are not {", ".join(EXTENSIONS[:-1])} '
            f'or {EXTENSIONS[-1]} ({kinds}); convert them to JPEG, PNG or WebP to use them.')


@functools.cache  # once, although a run opens its data several times
def _warn_once(sentence: str | None) -> None:
    if sentence:
        warn(sentence)


def _lines(path: str, field: str) -> list[str]:
    file = storage.path_of(path, of_data=True).expanduser()
    storage.check_reachable(file)
    try:
        text = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{field} names {path}, which cannot be read as text.') from error
    return [line for line in text.splitlines() if line.strip()]
