"""The host pipeline: reads and decodes images on the host and streams them to the devices.

Grain decodes in threads or worker processes, and batches are placed on the devices ahead of their
step. No iterator has state that must be saved: a batch is a function of the step.
"""

import functools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data.augment import Augmentation, Batch, augment, seed_input
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.normalization import normalize
from resnet_jax.data.order import image_index
from resnet_jax.data.skips import Skips
from resnet_jax.data.sources import Source
from resnet_jax.data.transforms import EvalTransform, TrainTransform
from resnet_jax.errors import UserError

ENDLESS = 2**48  # chunks of a training sequence
# An unreadable image gives way to the next one. So many in a row are no accident.
MAX_UNREADABLE_RUN = 100


class Chunks:
    """Random access to the parts of one process's batches, for Grain; a part is one thread's task.

    Chunk i is part i % parts of the batch of step start_step + i // parts.
    """

    def __init__(self, source: Source, transform: TrainTransform | EvalTransform,
                 batch_size: int, rows: np.ndarray, chunk_size: int, start_step: int, *,
                 skip_unreadable: bool):
        """See `Host`; rows are this process's rows of every batch, ascending."""
        self._source, self._transform = source, transform
        self._batch_size, self._start_step = batch_size, start_step
        self._rows = np.split(rows, range(chunk_size, len(rows), chunk_size))
        self._train = isinstance(transform, TrainTransform)
        self._skip = skip_unreadable

    @property
    def parts(self) -> int:
        """Chunks a batch."""
        return len(self._rows)

    def __len__(self) -> int:
        if self._train:
            return ENDLESS
        steps = -(-len(self._source) // self._batch_size)
        return max(0, steps - self._start_step) * self.parts

    def __getitem__(self, i: int) -> dict[str, Any]:
        step = self._start_step + i // self.parts
        rows = self._rows[i % self.parts]
        positions = step * self._batch_size + rows
        indices = positions
        if self._train:
            indices = _order(step, self._batch_size, len(self._source), self._transform.seed)[rows]
        skipped = []
        examples = [self._example(int(position), int(index), skipped)
                    for position, index in zip(positions, indices, strict=True)]
        images = [image for image, _, _ in examples]
        shape = next((image.shape for image in images if image is not None), (
            self._transform.size, self._transform.size, 3))
        filler = np.zeros(shape, np.uint8)
        return {
            'image': np.stack([filler if image is None else image for image in images]),
            'label': np.array([label for _, label, _ in examples], np.int32),
            'mask': np.array([mask for _, _, mask in examples], np.float32),
            'skipped': skipped,
        }

    def _example(self, position: int, index: int,
                 skipped: list[str]) -> tuple[np.ndarray | None, int, float]:
        """(image or none, label, mask) at a position of the sequence; names what it skips."""
        num_images = len(self._source)
        if index >= num_images:  # only fills the last batch of an evaluation
            return None, 0, 0.0
        for attempt in range(MAX_UNREADABLE_RUN):
            item = self._source[(index + attempt) % num_images]
            try:
                return self._transform(item, position), item.label, 1.0
            except UnreadableImageError as error:
                if not self._skip:
                    raise
                skipped.append(str(error))
                if not self._train:
                    return None, item.label, 0.0
        raise UserError(f'{MAX_UNREADABLE_RUN} unreadable images in a row, the last one: '
                        f'{skipped[-1]}')


class Host:
    """Batches of one split, read as they are needed; see `resnet_jax.data.Pipeline`."""

    shares_inputs = False

    def __init__(self, source: Source, mesh: Mesh, batch_size: int,
                 transform: TrainTransform | EvalTransform, augmentation: Augmentation | None, *,
                 threads: int, workers: int, chunk_size: int, batches_ahead: int,
                 skip_unreadable: bool):
        """Opens nothing yet.

        Args:
          source: the split.
          mesh: with an axis 'data', along which batches are spread.
          batch_size: images a batch, over all processes.
          transform: from an item to an image, for training or for evaluation.
          augmentation: of training batches on the device; none: an evaluation.
          threads: that decode, in each process that decodes.
          workers: processes that decode; 0: this one.
          chunk_size: images that a thread decodes before it looks for other work.
          batches_ahead: that are decoded, and as many that lie on the devices, before their step.
          skip_unreadable: leave out images that cannot be decoded, instead of an error.
        """
        self.source = source
        self.num_images = len(source)
        self.num_classes = source.num_classes
        first = source[0].image
        channels = first.shape[-1] if isinstance(first, np.ndarray) else 3
        self.image_shape = (transform.size, transform.size, channels)
        self.batch_size = batch_size
        self._skips = Skips()
        self._transform, self._augmentation = transform, augmentation
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
        shapes = {name: jax.ShapeDtypeStruct((self.batch_size, *shape), dtype,
                                             sharding=self._sharding)
                  for name, shape, dtype in (('image', self.image_shape, np.uint8),
                                             ('label', (), np.int32), ('mask', (), np.float32))}
        if self._augmentation is not None:
            shapes['seed'] = jax.ShapeDtypeStruct((), np.uint32, sharding=self._everywhere)
        return shapes

    def inputs(self, start_step: int) -> Iterator[Any]:
        rows = _local_rows(self._sharding, self.batch_size)
        chunks = Chunks(self.source, self._transform, self.batch_size, rows,
                        self._chunk_size, start_step, skip_unreadable=self._skip_unreadable)
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
        finally:
            iterator.close()

    def batch(self, inputs, step, normalization) -> Batch:
        if self._augmentation is not None:
            batch = augment(inputs['image'], inputs['label'], step, normalization,
                            self._augmentation._replace(seed=inputs['seed']))
        else:
            batch = {'image': normalize(inputs['image'], normalization),
                     'label': inputs['label']}
        return jax.lax.with_sharding_constraint(batch | {'mask': inputs['mask']}, self._sharding)

    def _put(self, rows: dict[str, Any]) -> dict[str, jax.Array]:
        """Spreads this process's rows over its devices, as a part of the batch of all processes."""
        for error in rows.pop('skipped'):
            self._skips.add(error)
        arrays = {name: jax.make_array_from_process_local_data(
                      self._sharding, array, (self.batch_size, *array.shape[1:]))
                  for name, array in rows.items()}
        return arrays if self._seed is None else arrays | {'seed': self._seed}

    @functools.cached_property
    def _seed(self) -> jax.Array | None:
        """The seed on every device, of a training pipeline; all batches share it."""
        if self._augmentation is None:
            return None
        seed = seed_input(self._augmentation)
        return jax.make_array_from_callback((), self._everywhere, seed.__getitem__)


@functools.lru_cache(maxsize=64)
def _order(step: int, batch_size: int, num_images: int, seed: int) -> np.ndarray:
    """The image indices of a training batch, computed once for all of its chunks."""
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    return image_index(positions.astype(np.uint32), num_images, seed & 0xFFFFFFFF)


def _concatenate(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: np.concatenate([chunk[name] for chunk in chunks])
             for name in ('image', 'label', 'mask')}
    return batch | {'skipped': [error for chunk in chunks for error in chunk['skipped']]}


def _local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, ascending."""
    slices = {index[0].indices(batch_size)[:2]
              for index in sharding.addressable_devices_indices_map((batch_size,)).values()}
    return np.concatenate([np.arange(*x) for x in sorted(slices)])
