"""A cache of arrays on disk, written atomically."""

import os
import pathlib
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_jax.data import decode
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.skips import Skips
from resnet_jax.data.sources import ArraySource, Source, cache_key, digest
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError
from resnet_jax.output import warn

CHUNK = 256  # images that one thread decodes at a time


class UnequalSizesError(Exception):
    """An image that does not have the size that all must have to lie in one array."""


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a .npz beside the path and renames it. Where that fails, there is only a warning.

    A cache saves time; a full or read-only disk is no reason to stop.
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
        warn(f'{path} cannot be read and is made again: {error}.')
        return None


def decoded(source: Source, size: int, folder: str, *, skip_unreadable: bool) -> ArraySource:
    """All images of a split, decoded once in parallel, and from then on read from the cache.

    Args:
      source: whose images are encoded and all of one size.
      size: their height and width.
      folder: of the cache; '': none.
      skip_unreadable: leave out images that cannot be decoded, with a warning, instead of an error.

    Raises:
      UnequalSizesError: an image has another size.
      UnreadableImageError: an image cannot be decoded.
    """
    key = digest(cache_key(source), size, skip_unreadable)
    path = pathlib.Path(folder).expanduser() / f'images-{key}.npz' if folder else None
    arrays = load(path) if path else None
    if arrays is None:
        arrays = _decode_all(source, size, skip_unreadable)
        if path:
            save(path, **arrays)
    if skipped := len(source) - len(arrays['labels']):
        warn(f'unreadable images left out: {skipped:,} of {len(source):,}.')
    return ArraySource(arrays['images'], arrays['labels'], source.num_classes, 'cached images',
                       source.fingerprint, key, skipped)


def _decode_all(source: Source, size: int, skip_unreadable: bool) -> dict[str, np.ndarray]:
    images = np.empty((len(source), size, size, 3), np.uint8)
    labels = np.empty(len(source), np.int32)
    good, skips = np.ones(len(source), bool), Skips()

    def fill(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(source))):
            item = source[i]
            try:
                pixels = decode.decode(item.image, item.name)
            except UnreadableImageError as error:
                if not skip_unreadable:
                    raise
                good[i] = False
                skips.add(str(error))
                continue
            if pixels.shape != (size, size, 3):
                raise UnequalSizesError(
                    f'{item.name} has {pixels.shape[1]} x {pixels.shape[0]} pixels')
            images[i], labels[i] = pixels, item.label

    with ThreadPoolExecutor(available_cores()) as pool:
        # Consumed, so that an error in a thread is raised here.
        for _ in pool.map(fill, range(0, len(source), CHUNK)):
            pass
    if not good.any():
        raise UserError('none of the images can be read.')
    if not good.all():
        images, labels = images[good], labels[good]
    return {'images': images, 'labels': labels}
