"""The on-device pipeline: keeps a small dataset on every device as uint8.

Shuffling, padding, cropping and flipping happen inside the jitted step, so no data is transferred
from the host during training.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data.augment import Augmentation, Batch, augment, seed_input
from resnet_jax.data.normalization import normalize
from resnet_jax.data.order import image_index
from resnet_jax.data.sources import ArraySource


class Resident:
    """Batches of one split, made on the device; see `resnet_jax.data.Pipeline`."""

    shares_inputs = True

    def __init__(self, source: ArraySource, mesh: Mesh, batch_size: int,
                 augmentation: Augmentation | None):
        """Copies nothing yet; `inputs` copies the images to every device.

        Args:
          source: the split.
          mesh: with an axis 'data'.
          batch_size: images a batch, over all processes.
          augmentation: of training batches, whose order its seed gives; none: an evaluation, in
            the order of the source.
        """
        self.source = source
        self.num_images = len(source)
        self.num_classes = source.num_classes
        self.image_shape = source.images.shape[1:]
        self.skipped = source.skipped
        self.batch_size = batch_size
        self._everywhere = NamedSharding(mesh, P())
        self._by_batch = NamedSharding(mesh, P('data'))
        self._augmentation = augmentation

    def total_skipped(self) -> int:
        return self.skipped  # every process has all images

    @property
    def input_shapes(self) -> Any:
        return {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self._everywhere)
                for name, array in self._arrays.items()}

    def inputs(self, start_step: int) -> Iterator[Any]:
        while True:
            yield self._inputs

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {'image': self.source.images, 'label': self.source.labels}
        if self._augmentation is not None:
            arrays['seed'] = seed_input(self._augmentation)
        return arrays

    @functools.cached_property
    def _inputs(self) -> dict[str, jax.Array]:
        # Unlike device_put, this does not send the whole split around to compare it.
        return {name: jax.make_array_from_callback(array.shape, self._everywhere, array.__getitem__)
                for name, array in self._arrays.items()}

    def batch(self, inputs, step, normalization) -> Batch:
        position = jnp.uint32(self.batch_size) * jnp.asarray(step, jnp.uint32) + jnp.arange(
            self.batch_size, dtype=jnp.uint32)
        if self._augmentation is not None:
            augmentation = self._augmentation._replace(seed=inputs['seed'])
            # By every device for all images: divided up, all would have to agree on each turn of a
            # loop whether it is the last one.
            index = jax.lax.with_sharding_constraint(
                image_index(position, self.num_images, augmentation.seed), self._everywhere)
            index = jax.lax.with_sharding_constraint(index, self._by_batch)
            batch = augment(inputs['image'][index], inputs['label'][index], step, normalization,
                            augmentation)
            batch['mask'] = jnp.ones(self.batch_size, jnp.float32)
        else:
            position = jax.lax.with_sharding_constraint(position, self._by_batch)
            # The last batch is filled up with the last image, which the mask then leaves out.
            index = jnp.minimum(position, self.num_images - 1).astype(jnp.int32)
            batch = {'image': normalize(inputs['image'][index], normalization),
                     'label': inputs['label'][index],
                     'mask': (position < self.num_images).astype(jnp.float32)}
        return jax.lax.with_sharding_constraint(batch, self._by_batch)
