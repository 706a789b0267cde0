"""Runs a function of batches over all images of a split, each of which counts exactly once."""

import collections
import itertools
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data import Item, Source
from resnet_jax.data.decode import UnreadableImageError, decode
from resnet_jax.data.objects import Canvas
from resnet_jax.data.skips import Skips
from resnet_jax.data.transforms import image_shape
from resnet_jax.errors import UserError
from resnet_jax.output import duration, say
from resnet_jax.tasks.detection import inference
from resnet_jax.tasks.detection.combined import View
from resnet_jax.tasks.detection.paste import paste_all
from resnet_jax.tasks.detection.truth import Found, Objects

AHEAD = 2  # batches that are decoded before the devices need them
REPORT_SECONDS = 10.0  # between lines of progress


class Loaded(NamedTuple):
    """An image on its canvases, with what is known of it.

    Attributes:
      index: of the image in the source.
      views: of the image at each scale, without a leading axis.
      original: (height, width) of the image.
      objects: in pixels of the image.
      id: the number that the source gives it.
      name: of its file without the suffix, or its number.
    """

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    views: tuple[View, ...]
    original: tuple[int, int]
    objects: Objects
    id: int
    name: str


class Tested(NamedTuple):
    """An image that was tested; see `Loaded`.

    Attributes:
      found: in pixels of the image.
    """

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    objects: Objects
    found: Found
    id: int
    name: str


def run(function: Callable, weights: Any, source: Source, canvases: Sequence[Canvas],
        batch_size: int, mesh: Mesh, *, skip_unreadable: bool) -> list[Tested]:
    """Detects the objects in all images of a split; process p of n takes every n-th from image p.

    The last batch is padded with its last image, and the padding is cut off again. Batches are
    decoded in threads while the devices compute.

    Args:
      function: (weights, views) -> `rcnn.Detections`, in pixels of the first view; compiled here.
      weights: any tree; every device has a copy.
      source: see `resnet_jax.data.objects`.
      canvases: of the views.
      batch_size: images that this process computes at once; a multiple of the devices of the mesh.
      mesh: of devices of this process, with an axis 'data'.
      skip_unreadable: leave out images that cannot be decoded, with a warning, instead of an error.

    Returns:
      The images of all processes in the order of the source, without those that were left out.

    Raises:
      UserError: an image cannot be decoded, or none is left.
    """
    by_image = NamedSharding(mesh, P('data'))
    weights = jax.device_put(weights, NamedSharding(mesh, P()))
    compiled = jax.jit(function)
    mine = range(jax.process_index(), len(source), jax.process_count())
    batch_size = min(batch_size, -(-max(1, len(mine)) // mesh.size) * mesh.size)
    tested: list[Tested] = []
    progress = _Progress(len(mine))
    waiting: collections.deque[tuple[list[Loaded], Any]] = collections.deque()

    def finish():
        images, found = waiting.popleft()
        tested.extend(_tested(images, jax.device_get(found)))
        progress.done(len(images))

    for images in _batches(source, mine, canvases, batch_size, skip_unreadable):
        padded = [*images, *images[-1:] * (batch_size - len(images))]
        views = jax.tree.map(lambda *parts: np.stack(parts), *(x.views for x in padded))
        waiting.append((images, compiled(weights, jax.device_put(views, by_image))))
        if len(waiting) > 1:  # one batch behind, so that the devices always have work
            finish()
    while waiting:
        finish()
    everything = sorted(itertools.chain(*_of_all_processes(tested)), key=lambda x: x.index)
    if not everything:
        raise UserError('there are no images to evaluate on.')
    return everything


def _tested(images: Sequence[Loaded], found: Any) -> Iterator[Tested]:
    """The detections of the images of a batch, in pixels of the images."""
    for i, image in enumerate(images):
        valid = found.valid[i]
        boxes = inference.to_original(found.boxes[i:i + 1], image.views[0].size[None],
                                      np.array([image.original]))[0]
        masks = None if found.masks is None else paste_all(
            found.masks[i][valid], boxes[valid], image.original)
        yield Tested(
            image.index, image.objects,
            Found(boxes[valid], found.classes[i][valid], found.scores[i][valid], masks),
            image.id, image.name)


def _batches(source: Source, indices: Sequence[int], canvases: Sequence[Canvas], size: int,
             skip_unreadable: bool) -> Iterator[list[Loaded]]:
    """Lists of `size` images on canvases of one shape, decoded ahead in threads.

    The last list of each shape is shorter.
    """
    skips = Skips()

    def load(index: int) -> Loaded | None:
        item = source[index]
        try:
            return _load(item, index, canvases)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            skips.add(str(error))
            return None

    with ThreadPoolExecutor() as pool:
        rest = iter(indices)
        under_way = collections.deque(
            pool.submit(load, i) for i in itertools.islice(rest, AHEAD * size))
        batches = collections.defaultdict(list)  # by the shapes of the canvases
        try:
            while under_way:
                loaded = under_way.popleft().result()
                under_way.extend(pool.submit(load, i) for i in itertools.islice(rest, 1))
                if loaded is None:
                    continue
                shapes = tuple(view.image.shape for view in loaded.views)
                batches[shapes].append(loaded)
                if len(batches[shapes]) == size:
                    yield batches.pop(shapes)
        finally:
            for future in under_way:  # after an error
                future.cancel()
    yield from batches.values()


def _load(item: Item, index: int, canvases: Sequence[Canvas]) -> Loaded:
    target, original = item.target, image_shape(item)
    name = str(target['id'])
    if not isinstance(item.image, np.ndarray):
        name = pathlib.PurePath(item.name).stem
        if len(canvases) > 1:
            item = item._replace(image=decode(item.image, item.name))  # once for all scales
    return Loaded(
        index, tuple(View(*canvas.pixels(item)) for canvas in canvases), original,
        Objects(**{part: np.asarray(target[part]) for part in (
            'boxes', 'classes', 'ignore', 'areas')}, masks=target.get('masks')),
        int(target['id']), name)


class _Progress:
    """Says on stderr how far an evaluation is, if it takes long."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._first: tuple[float, int] | None = None  # time and images of the first batch
        self._told = time.monotonic()

    def done(self, count: int) -> None:
        """Adds images that are done. The first of them took the time to compile, too."""
        self._done += count
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._done
        elif self._done < self._total and now - self._told > REPORT_SECONDS:
            self._told = now
            started, before = self._first
            left = (now - started) * (self._total - self._done) / (self._done - before)
            say(f'evaluated {self._done:,} of {self._total:,} images, about {duration(left)} left',
                sys.stderr)


def _of_all_processes(value: Any) -> list[Any]:
    """The values of all processes, in every process."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.pad(content, (0, int(sizes.max()) - len(content)))
    gathered = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]
