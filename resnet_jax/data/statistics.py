"""Exact sums over a training split, from which its mean and standard deviation are computed.

Each process of a job sums its share of the images. The sums are integers, so the result does not
depend on the number of processes.
"""

import pathlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.data import cache
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.sizes import pair
from resnet_jax.data.skips import Skips
from resnet_jax.data.sources import ArraySource, cache_key, digest
from resnet_jax.data.transforms import EvalTransform, channels
from resnet_jax.data.types import Source
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError
from resnet_jax.output import say

CHUNK = 256  # images that one thread adds up at a time; 256 * 255 < 2**16
REPORT_SECONDS = 10.0  # between lines of progress


class Sums(NamedTuple):
    """What is added up: `images` uint64 [H, W, C], `squares` uint64 [C], and images counted."""

    images: np.ndarray
    squares: np.ndarray
    count: int


class Statistics(NamedTuple):
    """In units of the full range, float64; std is 0 exactly where a channel is constant."""

    mean_image: np.ndarray  # [H, W, C]
    mean: np.ndarray  # [C]
    std: np.ndarray  # [C]


def measure(source: Source, transform: EvalTransform | None, cache_folder: str, *,
            skip_unreadable: bool) -> Statistics:
    """The statistics of a split; to be called by all processes, which get the same.

    Args:
      source: the split, the same in all processes.
      transform: makes the source's images one size; none: they are already.
      cache_folder: where the sums are kept; '': nowhere. What process 0 finds counts for all.
      skip_unreadable: leave out images that cannot be decoded, instead of an error.

    Raises:
      UserError: an image cannot be decoded, or none can.
    """
    path = None
    if cache_folder and cache_key(source):
        key = digest('sums', cache_key(source), transform.key if transform else (),
                     skip_unreadable)
        path = pathlib.Path(cache_folder).expanduser() / f'statistics-{key}.npz'
    # Where the images lie in memory, adding them up is quicker than asking others.
    shared = jax.process_count() > 1 and not _at_hand(source, transform)
    sums, reads = None, path and (jax.process_index() == 0 or not shared)
    if reads and (arrays := cache.load(path)) is not None:
        sums = Sums(arrays['images'], arrays['squares'], int(arrays['count']))
    if shared:
        shape = _shape(source, transform)
        sums = unpack(_from_first_process(pack(sums, shape)), shape)
    if sums is None:
        skips = Skips() if skip_unreadable else None
        if shared:
            rows = share(len(source), jax.process_index(), jax.process_count())
            parts = _from_all_processes(pack(add_up(source, transform, rows, skips), shape))
            sums = added([sums for part in parts if (sums := unpack(part, shape)) is not None])
        else:
            sums = add_up(source, transform, range(len(source)), skips)
        if not sums.count:
            raise UserError('none of the training images can be read.')
        if reads:
            cache.save(path, **sums._asdict())
    return statistics(sums)


def statistics(sums: Sums) -> Statistics:
    """Mean and standard deviation from exact sums."""
    mean_image = sums.images / sums.count / 255
    mean = mean_image.mean((0, 1))
    pixels = sums.count * sums.images.shape[0] * sums.images.shape[1]
    variance = np.maximum(sums.squares / pixels / 255**2 - mean**2, 0)
    # In integers, since rounding leaves a constant channel some 1e-9 on either side of 0.
    totals = sums.images.sum((0, 1))
    constant = [pixels * int(square) == int(total) ** 2
                for square, total in zip(sums.squares, totals, strict=True)]
    return Statistics(mean_image, mean, np.where(constant, 0, np.sqrt(variance)))


def share(num_images: int, process: int, num_processes: int) -> range:
    """The images that a process adds up: each one falls to exactly one process."""
    return range(num_images * process // num_processes,
                 num_images * (process + 1) // num_processes)


def add_up(source: Source, transform: EvalTransform | None, rows: range,
           skips: Skips | None = None) -> Sums:
    """The sums over some images of a split.

    Args:
      source, transform: see `measure`.
      rows: of the images, consecutive.
      skips: takes images that cannot be decoded; none: they are an error.

    Raises:
      UnreadableImageError: an image cannot be decoded.
    """
    def readable(row: int) -> np.ndarray | None:
        try:
            return transform.pixels(source[row])
        except UnreadableImageError as error:
            if skips is None:
                raise
            skips.add(str(error))
            return None

    def add(start: int) -> Sums | None:
        stop = min(start + CHUNK, rows.stop)
        if _at_hand(source, transform):
            images = source.images[start:stop]
        else:
            images = [x for row in range(start, stop) if (x := readable(row)) is not None]
            if not images:
                return None
            images = np.stack(images)
        # A chunk's sum, and one pixel's square, just fit in 16 bits.
        squares = np.square(images, dtype=np.uint16)
        return Sums(images.sum(0, dtype=np.uint16).astype(np.uint64),
                    squares.sum((0, 1, 2), dtype=np.uint64), len(images))

    shape = _shape(source, transform)
    total = Sums(np.zeros(shape, np.uint64), np.zeros(shape[-1], np.uint64), 0)
    reported, starts = time.monotonic(), range(rows.start, rows.stop, CHUNK)
    with ThreadPoolExecutor(available_cores()) as pool:
        for start, sums in zip(starts, pool.map(add, starts), strict=True):
            if sums is not None:
                total.images[...] += sums.images
                total.squares[...] += sums.squares
                total = total._replace(count=total.count + sums.count)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                done = min(start + CHUNK - rows.start, len(rows))
                say(f'measured the mean of {done:,} of {len(rows):,} training images', sys.stderr)
    return total


def added(parts: Sequence[Sums]) -> Sums:
    """The sums of several processes, added."""
    return Sums(sum(part.images for part in parts), sum(part.squares for part in parts),
                sum(part.count for part in parts))


def pack(sums: Sums | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Sums as uint32 [n], which JAX hands on as they are; none as zeros."""
    if sums is None:
        return np.zeros(2 * (1 + shape[-1] + int(np.prod(shape))), np.uint32)
    return np.concatenate([np.array([sums.count], np.uint64), sums.squares,
                           sums.images.ravel()]).view(np.uint32)


def unpack(packed: np.ndarray, shape: tuple[int, int, int]) -> Sums | None:
    """The inverse of `pack`; sums of no images are as good as none."""
    numbers = np.ascontiguousarray(packed).view(np.uint64)
    if not numbers[0]:
        return None
    start = 1 + shape[-1]  # of the images, behind a square for each channel
    return Sums(numbers[start:].reshape(shape), numbers[1:start], int(numbers[0]))


def _shape(source: Source, transform: EvalTransform | None) -> tuple[int, int, int]:
    """(H, W, C) of the images that are added up."""
    if _at_hand(source, transform):
        return source.images.shape[1:]
    return *pair(transform.size), transform.channels or channels(source[0])


def _at_hand(source: Source, transform: EvalTransform | None) -> bool:
    """Whether the images lie in memory in the size that they are added up in."""
    return isinstance(source, ArraySource) and (transform is None or (
        source.images.shape[1:3] == pair(transform.size)
        and transform.channels in (None, source.images.shape[-1])))


def _from_first_process(packed: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(packed))


def _from_all_processes(packed: np.ndarray) -> np.ndarray:
    """uint32 [processes, n]."""
    return np.asarray(multihost_utils.process_allgather(packed))
