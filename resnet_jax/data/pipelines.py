"""Makes the pipelines of a config: which images, where they are decoded, what is made of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import blank, cache, decode, fields, normalization, sources, transforms
from resnet_jax.data.augment import augmentation
from resnet_jax.data.host import Host
from resnet_jax.data.registry import create_source, eval_split
from resnet_jax.data.resident import Resident
from resnet_jax.data.sizes import image_size, text
from resnet_jax.data.sources import ArraySource
from resnet_jax.data.types import Batch, Example, Item, Normalization, Pipeline, Source
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

TrainTransform = Callable[[Item, np.random.Generator], Example]
EvalTransform = Callable[[Item], Example]
Augment = Callable[[Batch, Any, Normalization], Batch]
Groups = Callable[[Source], list[np.ndarray]]


def create_pipelines(config: ConfigDict, mesh: Mesh, *,
                     train_transform: TrainTransform | None = None,
                     eval_transform: EvalTransform | None = None,
                     augment: Augment | None = None, groups: Groups | None = None,
                     ) -> tuple[Pipeline, Pipeline, Normalization]:
    """Creates both pipelines, and measures the normalisation of the training split.

    A task that needs other examples than cropped images with the targets of the source gives its
    own functions; what it leaves out is done as in classification, by the fields of `config.data`.
    All of them are pure, and picklable where `data.workers` is not 0.

    Args:
      config: see `resnet_jax.config`.
      mesh: with an axis 'data', along which batches are spread.
      train_transform: (item, rng) -> example, on the host. An example is a dict of NumPy arrays:
        'image' uint8 [H, W, C], and whatever else, but 'mask' and 'seed'; of the same shapes and
        dtypes for every item, so that a task pads what varies, such as boxes. All that is random
        comes from `rng`, which belongs to the position in the training sequence. It may raise
        `UnreadableImageError`. `transforms.cut` and `crops.Crop` move pixels and coordinates.
      eval_transform: item -> example, on the host, for evaluation.
      augment: (examples, key, normalization) -> batch, on the device, inside jit. Examples are
        those of a batch, [N, …]. The key is None in evaluation, where nothing is random; in
        training, numbers up to N, and 2**32 - 1, are there to be folded in, but not 2**32 - 2. The
        batch has 'image' float32 [N, H, W, C], normalised (see `normalization.normalize`), and
        what the task's loss and metrics need; the pipeline adds 'mask'.

    Returns:
      Two pipelines, and the normalisation: 'mean' and 'std', float32, [C] or [H, W, C]. Whatever
      the transforms, it is measured on central crops of the training images, in grey where the
      examples are grey.

    Raises:
      UserError: a field of `config.data` is wrong, or data is missing or damaged; one sentence
        says which and how.
    """
    fields.check(config)
    train_source, test_source = _splits(config, create_source)
    train, test = _over_mesh(config, mesh, train_source, test_source, train_transform,
                             eval_transform, augment, groups)
    measured = None
    if not isinstance(train, Resident):
        measured = transforms.eval_transform(config)
        if transforms.channels(train.source[0]) != train.image_shape[-1]:
            measured = measured._replace(channels=train.image_shape[-1])
    return train, test, normalization.measure(
        train.source, config.data.normalization, measured, config.data.cache,
        skip_unreadable=config.data.on_unreadable == 'skip')


def blank_pipelines(config: ConfigDict, mesh: Mesh, *,
                    train_transform: TrainTransform | None = None,
                    eval_transform: EvalTransform | None = None,
                    augment: Augment | None = None, groups: Groups | None = None,
                    ) -> tuple[Pipeline, Pipeline, Normalization]:
    """Creates pipelines of blank images: enough to compile the steps without data or devices.

    The data is opened only where the steps depend on the number of images and that is not known,
    or where the source does not tell what its targets are like.

    Args:
      config, mesh, train_transform, eval_transform, augment, groups: see `create_pipelines`.

    Raises:
      UserError: as `create_pipelines`.
    """
    fields.check(config)
    on_host = train_transform or eval_transform or config.data.pipeline == 'host' or (
        not fields.on_device_only(config.data))
    if on_host and blank.is_known(config):
        splits = [blank.blank(1, config)] * 2  # the host sends the batches: their number is free
    else:
        splits = _splits(config, blank.stand_in)
    train, test = _over_mesh(config, mesh, *splits, train_transform, eval_transform, augment,
                             groups)
    return train, test, normalization.identity(config.data.normalization, train.image_shape)


def _splits(config: ConfigDict,
            create: Callable[[ConfigDict, str], Source]) -> tuple[Source, Source]:
    """The images to train on and those to evaluate on; some of the former may be held out."""
    split, count = eval_split(config)
    train_source = create(config, 'train')
    if split == 'holdout':
        test_source = sources.hold_out(train_source, count, True)
    else:
        test_source = create(config, 'test')
    return sources.hold_out(train_source, count, False), test_source


def _over_mesh(config: ConfigDict, mesh: Mesh, train_source: Source, test_source: Source,
               train_transform: TrainTransform | None, eval_transform: EvalTransform | None,
               augment: Augment | None, groups: Groups | None) -> tuple[Pipeline, Pipeline]:
    data, augment = config.data, augment or augmentation(config)
    eval_batch = _eval_batch_size(config, len(test_source), mesh.shape['data'])
    own = train_transform or eval_transform
    if own and data.pipeline == 'resident':
        raise UserError("this task transforms images on the host, which data.pipeline 'resident' "
                        'cannot do: set data.pipeline to host.')
    if not own and (resident := _as_resident(config, train_source, test_source)):
        return tuple(Resident(source, mesh, size, augment, seed=seed) for source, size, seed in zip(
            resident, (config.batch_size, eval_batch), (config.seed, None), strict=True))
    return tuple(
        Host(source, mesh, batch_size, transform, augment, seed=seed, threads=threads(config),
             workers=data.workers, chunk_size=data.chunk_size,
             batches_ahead=data.batches_ahead, skip_unreadable=data.on_unreadable == 'skip',
             groups=groups and groups(source))
        for source, batch_size, transform, seed in (
            (train_source, config.batch_size,
             train_transform or transforms.train_transform(config), config.seed),
            (test_source, eval_batch,
             eval_transform or transforms.eval_transform(config), None)))


def _eval_batch_size(config: ConfigDict, num_images: int, data_shards: int) -> int:
    """`eval.batch_size`, and no more than the images rounded up to a multiple of 8 per device.

    Anything beyond would be filler, for which there may not even be memory.
    """
    unit = 8 * data_shards
    return min(config.eval.batch_size, -(-num_images // unit) * unit)


def _as_resident(config: ConfigDict, train: Source,
                 test: Source) -> tuple[ArraySource, ArraySource] | None:
    """Both splits as arrays, where the on-device pipeline is asked for or fits; or none."""
    data = config.data
    if data.pipeline == 'host' or not fields.on_device_only(data):
        return None
    try:
        return tuple(_as_array(config, source) for source in (train, test))
    except cache.UnequalSizesError as error:
        if data.pipeline == 'resident':
            raise UserError(f"data.pipeline 'resident' needs images of one size, and {error}: "
                            'set data.pipeline to host.') from error
        logging.info('Host pipeline, since %s', error)
        return None


def _as_array(config: ConfigDict, source: Source) -> ArraySource:
    data = config.data
    if isinstance(source, ArraySource):
        num_bytes, shape = source.images.nbytes, source.images.shape[1:]
    else:
        shape = _shape(source, data.on_unreadable == 'skip')
        num_bytes = len(source) * int(np.prod(shape))
    if data.image_size is not None and shape[:2] != image_size(data):
        raise cache.UnequalSizesError(f'images are of size {text(shape[:2])}, not '
                                      f'{text(image_size(data))}')
    if data.pipeline == 'auto' and num_bytes > data.resident_bytes:
        raise cache.UnequalSizesError(f'the images take {num_bytes} bytes')
    if isinstance(source, ArraySource):
        return source
    return cache.decoded(source, shape[:2], data.cache,
                         skip_unreadable=data.on_unreadable == 'skip')


def _shape(source: Source, skip_unreadable: bool) -> tuple[int, ...]:
    """(H, W, C) of the first image that can be read."""
    for i in range(len(source)):
        item = source[i]
        try:
            return *transforms.image_shape(item), transforms.channels(item)
        except decode.UnreadableImageError:
            if not skip_unreadable:
                raise
    raise UserError('none of the images can be read.')


def threads(config: ConfigDict) -> int:
    """The number of decoding threads of each process that decodes."""
    if config.data.threads is not None:
        return config.data.threads
    return max(1, available_cores() // max(1, config.data.workers))
