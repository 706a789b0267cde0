"""The on-device pipeline: a small dataset lives on every accelerator as uint8.

Shuffling, padding, cropping and flipping happen inside the jitted step, so that nothing travels
from the host but the call itself.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data.normalization import normalize
from resnet_jax.data.order import image_index
from resnet_jax.data.sources import ArraySource

Batch = dict[str, jax.Array]


class Resident:
    """Batches of one split, made on the device; see `resnet_jax.data.Pipeline`."""

    def __init__(self, source: ArraySource, mesh: Mesh, batch_size: int, *, train: bool, seed: int,
                 crop_padding: int, flip: bool):
        everywhere = NamedSharding(mesh, P())
        self.num_images = len(source)
        self.num_classes = source.num_classes
        self.image_shape = source.images.shape[1:]
        self.batch_size = batch_size
        self._inputs = jax.device_put(
            {'image': source.images, 'label': source.labels}, everywhere)
        self._by_batch = NamedSharding(mesh, P('data'))
        self._train = train
        self._seed = seed
        self._crop_padding = crop_padding
        self._flip = flip

    def inputs(self, start_step: int) -> Iterator[Any]:
        while True:
            yield self._inputs

    def batch(self, inputs, step, normalization) -> Batch:
        position = jnp.uint32(self.batch_size) * jnp.asarray(step, jnp.uint32) + jnp.arange(
            self.batch_size, dtype=jnp.uint32)
        position = jax.lax.with_sharding_constraint(position, self._by_batch)
        if self._train:
            index = image_index(position, self.num_images, self._seed)
            mask = jnp.ones(self.batch_size, jnp.float32)
        else:
            # The last batch is filled up with the last image, which the mask then leaves out.
            index = jnp.minimum(position, self.num_images - 1).astype(jnp.int32)
            mask = (position < self.num_images).astype(jnp.float32)
        images = normalize(inputs['image'][index], normalization)
        if self._train:
            key = jax.random.fold_in(jax.random.key(self._seed), step)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.batch_size))
            images = jax.vmap(self._augment)(images, keys)
        batch = {'image': images, 'label': inputs['label'][index], 'mask': mask}
        return jax.lax.with_sharding_constraint(batch, self._by_batch)

    def _augment(self, image, key):
        """Pads with zeros, crops at random, flips (section 4.2). float32 [H, W, C] in and out.

        The zeros come after the mean is subtracted: they are the mean image.
        """
        crop_key, flip_key = jax.random.split(key)
        pad = self._crop_padding
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        if self._flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image
