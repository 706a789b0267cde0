"""The on-device pipeline: keeps a small dataset on every device as uint8.

Shuffling, padding, cropping and flipping happen inside the jitted step, so no data is transferred
from the host during training.
"""

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data.augment import examples_of, key_of, seed_input
from resnet_jax.data.order import image_index
from resnet_jax.data.sources import ArraySource
from resnet_jax.data.types import Batch, Example, check_names


class Resident:
    """Batches of one split, made on the device; see `resnet_jax.data.Pipeline`."""

    shares_inputs = True

    def __init__(self, source: ArraySource, mesh: Mesh, batch_size: int, augment: Callable, *,
                 seed: int | None):
        """Copies nothing yet; `inputs` copies the images to every device.

        Args:
          source: the split.
          mesh: with an axis 'data'.
          batch_size: images per batch, over all processes.
          augment: see `resnet_jax.data.pipelines.create_pipelines`.
          seed: of the order and of all that is random in training; None: an evaluation, in the
            order of the source.
        """
        check_names(source.targets)
        self.source = source
        self.num_images = len(source)
        self.image_shape = source.images.shape[1:]
        self.skipped = source.skipped
        self.batch_size = batch_size
        self.num_batches = -(-len(source) // batch_size)
        self._everywhere = NamedSharding(mesh, P())
        self._by_batch = NamedSharding(mesh, P('data'))
        self._augment, self._seed = augment, seed

    def total_skipped(self) -> int:
        return self.skipped  # every process has all images

    @property
    def input_shapes(self) -> Any:
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=self._everywhere), self._arrays)

    def inputs(self, start_step: int) -> Generator[Any, None, None]:
        while True:
            yield self._inputs

    @property
    def _arrays(self) -> Example:
        """The examples, and in training the 'seed'."""
        arrays = {**self.source.targets, 'image': self.source.images}
        if self._seed is not None:
            arrays['seed'] = seed_input(self._seed)
        return arrays

    @functools.cached_property
    def _inputs(self) -> dict[str, Any]:
        # Unlike device_put, this does not send the whole split around to compare it.
        return jax.tree.map(lambda array: jax.make_array_from_callback(
            array.shape, self._everywhere, array.__getitem__), self._arrays)

    def batch(self, inputs, step, normalization) -> Batch:
        position = jnp.uint32(self.batch_size) * jnp.asarray(step, jnp.uint32) + jnp.arange(
            self.batch_size, dtype=jnp.uint32)
        if self._seed is not None:
            # By every device for all images: divided up, all would have to agree on each turn of a
            # loop whether it is the last one.
            index = jax.lax.with_sharding_constraint(
                image_index(position, self.num_images, inputs['seed']), self._everywhere)
            index = jax.lax.with_sharding_constraint(index, self._by_batch)
            key, mask = key_of(inputs['seed'], step), jnp.ones(self.batch_size, jnp.float32)
        else:
            position = jax.lax.with_sharding_constraint(position, self._by_batch)
            # The last batch is filled up with the last image, which the mask then leaves out.
            index = jnp.minimum(position, self.num_images - 1).astype(jnp.int32)
            key, mask = None, (position < self.num_images).astype(jnp.float32)
        examples = jax.tree.map(lambda array: array[index], examples_of(inputs))
        batch = self._augment(examples, key, normalization)
        return jax.lax.with_sharding_constraint(batch | {'mask': mask}, self._by_batch)
