"""Data: sources of images, and the pipelines that turn them into batches.

A batch is a pure function of (config, seed, step):
`{'image': float32 [N, H, W, C], 'label': int32 [N], 'mask': float32 [N]}`, sharded over the mesh
axis 'data'. The mask is 0 for the images that only fill the last batch of an evaluation.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import normalization, sources
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import Batch, Resident
from resnet_jax.data.sources import Source
from resnet_jax.errors import UserError


class Pipeline(Protocol):
    """Batches of one split: what travels to the devices, and what the devices make of it.

    Attributes:
      num_images: images in the split.
      num_classes: labels are in [0, num_classes).
      image_shape: (H, W, C) of a batch's images.
      batch_size: N, over all processes.
    """

    num_images: int
    num_classes: int
    image_shape: tuple[int, int, int]
    batch_size: int

    def inputs(self, start_step: int) -> Iterator[Any]:
        """What the device needs for the batches of start_step, start_step + 1, …

        Endless in training; one item a batch, ceil(num_images / batch_size) of them or endless, in
        evaluation. Items are trees of arrays that already lie on the mesh.
        """
        ...

    def batch(self, inputs: Any, step: jax.Array, normalization: Normalization) -> Batch:
        """The batch of a step. Pure, and called inside jit."""
        ...


def create_source(config: ConfigDict, split: str) -> Source:
    """The split 'train' or 'test' of `config.data.source`.

    Raises:
      UserError: there is no such source; the sentence names those that there are.
    """
    name = config.data.source
    if name == 'digits':
        return sources.digits(split)
    if name == 'synthetic':
        return sources.synthetic(split, config.data.image_size, config.model.num_classes)
    raise UserError(f'data.source must be digits or synthetic, got {name!r}.')


def create_pipelines(config: ConfigDict, mesh: Mesh) -> tuple[Pipeline, Pipeline, Normalization]:
    """The training pipeline, the evaluation pipeline, and the training split's normalisation.

    Raises:
      UserError: a field of `config.data` is wrong; one sentence says which and how.
    """
    train_source, test_source = (create_source(config, split) for split in ('train', 'test'))
    train = Resident(train_source, mesh, config.batch_size, train=True, seed=config.seed,
                     crop_padding=config.data.crop_padding, flip=config.data.flip)
    test = Resident(test_source, mesh, config.eval.batch_size, train=False, seed=config.seed,
                    crop_padding=0, flip=False)
    return train, test, normalization.measure(train_source, config.data.normalization)
