"""A cache of arrays on disk, written atomically."""

import os
import pathlib
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from resnet_jax.data import decode
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.sizes import text
from resnet_jax.data.skips import Skips
from resnet_jax.data.sources import ArraySource, cache_key, digest
from resnet_jax.data.types import Source, Tree, as_arrays
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError
from resnet_jax.output import warn

CHUNK = 256  # images that one thread decodes at a time


class UnequalSizesError(Exception):
    """An image that does not have the size that all must have to lie in one array."""


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a .npz beside the path and renames it. Where that fails, there is only a warning.

    A cache saves time; a full or read-only disk is not a reason to stop.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.writing-',
                                         delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        warn(f'{path} was not cached: {error.strerror or error}.')
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)


def load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays of a .npz, or none where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warn(f'{path} cannot be read, and is created again: {error}.')
        return None


def decoded(source: Source, size: tuple[int, int], folder: str, *,
            skip_unreadable: bool) -> ArraySource:
    """All images of a split, decoded once in parallel, and from then on read from the cache.

    Args:
      source: whose images are encoded and all of one size.
      size: their (height, width).
      folder: of the cache; '': none.
      skip_unreadable: leave out images that cannot be decoded, with a warning, instead of an error.

    Raises:
      UnequalSizesError: an image has another size, or the targets have several shapes.
      UnreadableImageError: an image cannot be decoded.
    """
    key = digest(cache_key(source), size[0] if size[0] == size[1] else size, skip_unreadable)
    path = pathlib.Path(folder).expanduser() / f'images-{key}.npz' if folder else None
    arrays = load(path) if path else None
    if arrays is None or 'labels' in arrays:  # as caches were before targets had names
        images, targets = _decode_all(source, size, skip_unreadable)
        if path:
            save(path, images=images, **_flat(targets))
    else:
        images, targets = arrays.pop('images'), _nested(arrays)
    if skipped := len(source) - len(images):
        warn(f'unreadable images left out: {skipped:,} of {len(source):,}.')
    return ArraySource(images, targets, 'cached images',
                       num_classes=getattr(source, 'num_classes', None),
                       class_names=getattr(source, 'class_names', ()),
                       fingerprint=source.fingerprint, cache_key=key, skipped=skipped)


def _flat(targets: Tree) -> dict[str, np.ndarray]:
    """The arrays of a tree by path, such as 'target/label'."""
    return {'target/' + jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree.leaves_with_path(targets)}


def _nested(arrays: dict[str, np.ndarray]) -> Tree:
    """The inverse of `_flat`."""
    targets: dict[str, Any] = {}
    for path, leaf in arrays.items():
        _, *parents, name = path.split('/')
        tree = targets
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaf
    return targets


def _decode_all(source: Source, size: tuple[int, int],
                skip_unreadable: bool) -> tuple[np.ndarray, Tree]:
    """Images uint8 [N, *size, 3] and targets [N, …]."""
    images = np.empty((len(source), *size, 3), np.uint8)
    targets: list[Tree | None] = [None] * len(source)  # None: not readable
    skips = Skips()

    def fill(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(source))):
            item = source[i]
            try:
                pixels = decode.decode(item.image, item.name)
            except UnreadableImageError as error:
                if not skip_unreadable:
                    raise
                skips.add(str(error))
                continue
            if pixels.shape[:2] != size:
                raise UnequalSizesError(f'{item.name} is of size {text(pixels.shape[:2])}')
            images[i], targets[i] = pixels, as_arrays(item.target)

    with ThreadPoolExecutor(available_cores()) as pool:
        # Consumed, so that an error in a thread is raised here.
        for _ in pool.map(fill, range(0, len(source), CHUNK)):
            pass
    good = np.array([target is not None for target in targets])
    if not good.any():
        raise UserError('none of the images can be read.')
    if not good.all():
        images = images[good]
    try:
        return images, jax.tree.map(lambda *leaves: np.stack(leaves),
                                    *(target for target in targets if target is not None))
    except ValueError as error:  # of stack
        raise UnequalSizesError('the targets of the images differ in shape') from error
