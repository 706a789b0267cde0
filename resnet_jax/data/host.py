"""The host pipeline: reads and decodes images on the host and streams them to the devices.

Grain decodes in threads or worker processes, and batches are placed on the devices ahead of their
step. No iterator has state that must be saved: a batch is a function of the step.
"""

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data import crops
from resnet_jax.data.augment import examples_of, key_of, seed_input
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.order import group_of_step, image_index
from resnet_jax.data.skips import Skips
from resnet_jax.data.types import Batch, Example, Item, Source, check_names
from resnet_jax.errors import UserError

ENDLESS = 2**48  # chunks of a training sequence
# An unreadable image gives way to the next one. So many in a row are no accident.
MAX_UNREADABLE_RUN = 100
WORKER_DIED = 'Worker process was terminated unexpectedly'  # how Grain puts it
GROUP_SEEDS = 0x9E3779B9  # between the seeds of the orders of two groups
Indices = np.ndarray | range


class Chunks:
    """Random access to the parts of one process's batches, for Grain; a part is one thread's task.

    Chunk i is part i % parts of the batch of step start_step + i // parts.
    """

    def __init__(self, source: Source, transform: Callable, batch_size: int, rows: np.ndarray,
                 chunk_size: int, start_step: int, *, seed: int | None, groups: Sequence[Indices],
                 fillers: Sequence[Example], skip_unreadable: bool):
        """See `Host`; rows are this process's rows of every batch, ascending.

        The filler of a group is an example that takes the place of images that do not count.
        """
        self._source, self._transform = source, transform
        self._batch_size, self._start_step = batch_size, start_step
        self._rows = np.split(rows, range(chunk_size, len(rows), chunk_size))
        self._seed, self._groups, self._fillers = seed, groups, fillers
        self._skip = skip_unreadable

    @property
    def parts(self) -> int:
        """Chunks per batch."""
        return len(self._rows)

    def __len__(self) -> int:
        if self._seed is not None:
            return ENDLESS
        steps = count_batches(self._groups, self._batch_size)
        return max(0, steps - self._start_step) * self.parts

    def __getitem__(self, i: int) -> dict[str, Any]:
        step = self._start_step + i // self.parts
        rows, size = self._rows[i % self.parts], self._batch_size
        group, batch = self._group(step)
        indices, filler = self._groups[group], self._fillers[group]
        places = batch * size + rows
        if self._seed is not None:
            places = _order(batch, size, len(indices), self._seed + group * GROUP_SEEDS)[rows]
        skipped = []
        examples = [self._example(step * size + int(row), indices, int(place), skipped)
                    for row, place in zip(rows, places, strict=True)]
        return {
            'examples': _stack([filler if example is None else example for example in examples]),
            'mask': np.array([example is not None for example in examples], np.float32),
            'skipped': skipped,
        }

    def _group(self, step: int) -> tuple[int, int]:
        """The group of a step, and the number of the batch within it."""
        if self._seed is not None:
            return group_of_step(step, [len(indices) for indices in self._groups])
        group = 0
        while step >= (batches := count_batches(self._groups[group:group + 1], self._batch_size)):
            group, step = group + 1, step - batches
        return group, step

    def _example(self, position: int, indices: Indices, place: int,
                 skipped: list[str]) -> Example | None:
        """The example at a position of the sequence, if there is one; names what it skips."""
        if place >= len(indices):  # only fills the last batch of an evaluation
            return None
        for attempt in range(MAX_UNREADABLE_RUN):
            item = self._source[int(indices[(place + attempt) % len(indices)])]
            try:
                return _transformed(self._transform, item, self._seed, position)
            except UnreadableImageError as error:
                if not self._skip:
                    raise
                skipped.append(str(error))
                if self._seed is None:
                    return None
        raise UserError(f'{MAX_UNREADABLE_RUN} unreadable images in a row, the last one: '
                        f'{skipped[-1]}')


def count_batches(groups: Sequence[Indices], batch_size: int) -> int:
    """The number of batches that hold every image once, where groups are not mixed."""
    return sum(-(-len(indices) // batch_size) for indices in groups)


class Host:
    """Batches of one split, read as they are needed; see `resnet_jax.data.Pipeline`."""

    shares_inputs = False

    def __init__(self, source: Source, mesh: Mesh, batch_size: int, transform: Callable,
                 augment: Callable, *, seed: int | None, threads: int, workers: int,
                 chunk_size: int, batches_ahead: int, skip_unreadable: bool,
                 groups: Sequence[np.ndarray] | None = None):
        """Makes one example of each group, to know its shape.

        Args:
          source: the split.
          mesh: with an axis 'data', along which batches are spread.
          batch_size: images per batch, over all processes.
          transform, augment: see `resnet_jax.data.pipelines.create_pipelines`.
          seed: of the order and of all that is random in training; None: an evaluation.
          threads: that decode, in each process that decodes.
          workers: processes that decode; 0: this one.
          chunk_size: images that a thread decodes before it looks for other work.
          batches_ahead: that are decoded, and as many that lie on the devices, before their step.
          skip_unreadable: leave out images that cannot be decoded, instead of an error.
          groups: indices of images whose examples are of one shape, if not all are; a batch
            consists of images of one group.

        Raises:
          UserError: the first image cannot be decoded.
        """
        self.source = source
        self.num_images = len(source)
        self.batch_size = batch_size
        self._skips = Skips()
        self._transform, self._augment, self._seed = transform, augment, seed
        self._groups = [range(len(source))] if groups is None else [
            indices for indices in groups if len(indices)]
        self._fillers = [jax.tree.map(np.zeros_like, _first(
            source, indices, transform, seed, skip_unreadable)) for indices in self._groups]
        check_names(self._fillers[0])
        self.image_shape = self._fillers[0]['image'].shape
        self.num_batches = count_batches(self._groups, batch_size)
        self._sharding = NamedSharding(mesh, P('data'))
        self._everywhere = NamedSharding(mesh, P())
        self._threads, self._workers = threads, workers
        self._chunk_size, self._batches_ahead = chunk_size, batches_ahead
        self._skip_unreadable = skip_unreadable

    @property
    def skipped(self) -> int:
        return self._skips.count

    def total_skipped(self) -> int:
        if jax.process_count() == 1 or not self._skip_unreadable:
            return self.skipped
        return int(multihost_utils.process_allgather(np.int32(self.skipped)).sum())

    @property
    def input_shapes(self) -> Any:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape), x.dtype,
                                           sharding=self._sharding),
            {**self._fillers[0], 'mask': np.float32(0)})
        if self._seed is not None:
            shapes['seed'] = jax.ShapeDtypeStruct((), np.uint32, sharding=self._everywhere)
        return shapes

    def inputs(self, start_step: int) -> Generator[Any, None, None]:
        import grain

        rows = _local_rows(self._sharding, self.batch_size)
        chunks = Chunks(self.source, self._transform, self.batch_size, rows, self._chunk_size,
                        start_step, seed=self._seed, groups=self._groups,
                        fillers=self._fillers, skip_unreadable=self._skip_unreadable)
        ahead = self._batches_ahead * chunks.parts
        dataset = grain.MapDataset.source(chunks).to_iter_dataset(
            grain.ReadOptions(num_threads=self._threads,
                              prefetch_buffer_size=max(ahead, self._threads)))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain asks, also where no command parsed any
                flags.FLAGS.mark_as_parsed()
            # Workers take turns chunk by chunk, so their number does not change the order.
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(
                num_workers=self._workers,
                per_worker_buffer_size=max(1, ahead // self._workers)))
        dataset = dataset.batch(chunks.parts, batch_fn=_concatenate).map(self._put)
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=self._batches_ahead)
        iterator = iter(dataset)
        try:
            yield from iterator
        except RuntimeError as error:
            if WORKER_DIED not in str(error):
                raise
            raise UserError(
                'a decoding process was killed, perhaps for want of memory; lower data.workers '
                f'({self._workers}) if so, and run the same command again to resume.') from error
        finally:
            iterator.close()

    def batch(self, inputs, step, normalization) -> Batch:
        key = None if self._seed is None else key_of(inputs['seed'], step)
        batch = self._augment(examples_of(inputs), key, normalization)
        return jax.lax.with_sharding_constraint(batch | {'mask': inputs['mask']}, self._sharding)

    def _put(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Spreads this process's rows over its devices, as a part of the batch of all processes."""
        for error in rows['skipped']:
            self._skips.add(error)
        arrays = jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(
                self._sharding, array, (self.batch_size, *array.shape[1:])),
            rows['examples'] | {'mask': rows['mask']})
        return arrays if self._seed is None else arrays | {'seed': self._seed_on_devices}

    @functools.cached_property
    def _seed_on_devices(self) -> jax.Array:
        """The seed on every device; all batches share it."""
        return jax.make_array_from_callback((), self._everywhere,
                                            seed_input(self._seed).__getitem__)


def _transformed(transform: Callable, item: Item, seed: int | None, position: int) -> Example:
    return transform(item) if seed is None else transform(item, crops.generator(seed, position))


def _first(source: Source, indices: Indices, transform: Callable, seed: int | None,
           skip_unreadable: bool) -> Example:
    """The example of the first of some images that can be read."""
    for index in map(int, indices[:MAX_UNREADABLE_RUN]):
        try:
            return _transformed(transform, source[index], seed, index)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            last = error
    raise UserError(f'{MAX_UNREADABLE_RUN} unreadable images in a row, the last one: {last}')


@functools.lru_cache(maxsize=64)
def _order(step: int, batch_size: int, num_images: int, seed: int) -> np.ndarray:
    """The image indices of a training batch, computed once for all of its chunks."""
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    return image_index(positions.astype(np.uint32), num_images, seed & 0xFFFFFFFF)


def _stack(examples: Sequence[Example]) -> Example:
    """The examples of a chunk as arrays [n, …].

    Raises:
      UserError: they are not alike.
    """
    shapes = [{jax.tree_util.keystr(path, simple=True, separator='/'): np.shape(leaf)
               for path, leaf in jax.tree.leaves_with_path(example)} for example in examples]
    for other in shapes:
        if other != shapes[0]:
            raise UserError('the targets of all images in a batch must have the same shapes, got '
                            f'{shapes[0]} and {other}: this task cannot use this data.')
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _concatenate(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    examples, mask = jax.tree.map(
        lambda *arrays: np.concatenate(arrays),
        *((chunk['examples'], chunk['mask']) for chunk in chunks))
    return {'examples': examples, 'mask': mask,
            'skipped': [error for chunk in chunks for error in chunk['skipped']]}


def _local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, ascending."""
    slices = {index[0].indices(batch_size)[:2]
              for index in sharding.addressable_devices_indices_map((batch_size,)).values()}
    return np.concatenate([np.arange(*x) for x in sorted(slices)])
