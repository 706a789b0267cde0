"""Image sources, and the pipelines that turn them into batches.

A batch is a pure function of (config, seed, step):
`{'image': float32 [N, H, W, C], 'label': int32 [N], 'mask': float32 [N]}`, sharded over the mesh
axis 'data'. The mask is 0 for images that pad the last batch of an evaluation. With mixup or
CutMix, a training batch also has 'mix_label' and 'mix_weight'; see `resnet_jax.data.augment`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import blank, cache, decode, normalization, sources
from resnet_jax.data.augment import Augmentation, Batch
from resnet_jax.data.folder import class_names, open_folder
from resnet_jax.data.host import Host
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.randaugment import MAX_MAGNITUDE
from resnet_jax.data.resident import Resident
from resnet_jax.data.shards import Shards
from resnet_jax.data.sources import ArraySource, Source, check_unchanged
from resnet_jax.data.tfds import Tfds
from resnet_jax.data.transforms import EvalTransform, TrainTransform
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

__all__ = ['Batch', 'Normalization', 'Pipeline', 'Source', 'blank_pipelines', 'check_unchanged',
           'count_classes', 'create_eval_source', 'create_pipelines', 'create_source']

FILES = ('folder', 'tfds', 'shards')  # sources that the user must provide
SOURCES = (*FILES, 'digits', 'synthetic')


class Pipeline(Protocol):
    """Batches of one split: what travels to the devices, and what the devices make of it.

    Attributes:
      source: where the images come from; its `fingerprint` tells whether they changed.
      num_images: images in the split.
      num_classes: labels are in [0, num_classes).
      image_shape: (H, W, C) of a batch's images.
      batch_size: N, over all processes.
      input_shapes: shapes, dtypes and shardings of an item of `inputs`; in training, 'seed' is
        among them, the run's as uint32 [].
      shares_inputs: whether all batches are made from the same inputs.
      skipped: unreadable images that this process has left out so far: once where they are decoded
        in advance, otherwise each time they were met.
    """

    source: Source
    num_images: int
    num_classes: int
    image_shape: tuple[int, int, int]
    batch_size: int
    input_shapes: Any
    shares_inputs: bool
    skipped: int

    def inputs(self, start_step: int) -> Iterator[Any]:
        """What the device needs for the batches of start_step, start_step + 1, …

        Endless in training; one item a batch, ceil(num_images / batch_size) of them or endless, in
        evaluation. Items are trees of arrays that already lie on the mesh.
        """
        ...

    def total_skipped(self) -> int:
        """`skipped` of all processes; to be called by all of them."""
        ...

    def batch(self, inputs: Any, step: jax.Array, normalization: Normalization) -> Batch:
        """The batch of a step. Pure, and called inside jit."""
        ...


def create_source(config: ConfigDict, split: str) -> Source:
    """The split 'train' or 'test' of `config.data.source`.

    Raises:
      UserError: there is no such source, or its data is missing; the sentence says what to do.
    """
    data = config.data
    if data.source == 'folder':
        return open_folder(data.path, split, data.class_list, data.label_file)
    if data.source == 'tfds':
        return Tfds(data.tfds_name, data.path, split)
    if data.source == 'shards':
        return Shards(data.path, split)
    if data.source == 'digits':
        return sources.digits(split)
    if data.source == 'synthetic':
        return sources.synthetic(split, data.image_size, config.model.num_classes)
    raise UserError(f'data.source must be one of {", ".join(SOURCES)}, got {data.source!r}.')


def create_eval_source(config: ConfigDict) -> Source:
    """The split that `config.data.eval_split` names: 'test', or the held-out training images.

    Raises:
      UserError: as `create_source`.
    """
    if config.data.eval_split == 'holdout':
        return sources.hold_out(create_source(config, 'train'), config.data.holdout, True)
    return create_source(config, 'test')


def count_classes(config: ConfigDict) -> int | None:
    """The classes of `config.data.source`, or none where the config says how many to make up.

    Raises:
      UserError: as `create_source`.
    """
    data = config.data
    if data.source == 'synthetic':
        return None
    if data.source == 'folder':  # without listing its images
        return len(class_names(data.path, data.class_list))
    return create_source(config, 'train').num_classes


def create_pipelines(config: ConfigDict, mesh: Mesh) -> tuple[Pipeline, Pipeline, Normalization]:
    """The training pipeline, the evaluation pipeline, and the training split's normalisation.

    Raises:
      UserError: a field of `config.data` is wrong, or data is missing or damaged; one sentence
        says which and how.
    """
    _check(config)
    splits = _splits(config, create_source)
    train, test, transform = _over_mesh(config, mesh, *splits)
    return train, test, normalization.measure(
        train.source, config.data.normalization, transform, config.data.cache,
        skip_unreadable=config.data.on_unreadable == 'skip')


def blank_pipelines(config: ConfigDict, mesh: Mesh) -> tuple[Pipeline, Pipeline, Normalization]:
    """The same over blank images: enough to compile the steps, without the data and the devices.

    The data is opened only where the steps depend on the number of images and that is not known.

    Raises:
      UserError: as `create_pipelines`.
    """
    _check(config)
    if config.data.source in FILES and (
            config.data.pipeline == 'host' or not _device_only(config.data)):
        splits = [blank.blank(1, config)] * 2  # the host sends the batches: their number is free
    else:
        splits = _splits(config, functools.partial(blank.stand_in, create=create_source))
    train, test, _ = _over_mesh(config, mesh, *splits)
    return train, test, normalization.identity(config.data.normalization, train.image_shape)


def _splits(config: ConfigDict,
            create: Callable[[ConfigDict, str], Source]) -> tuple[Source, Source]:
    """The images to train on and those to evaluate on; some of the former may be held out."""
    data = config.data
    train_source = create(config, 'train')
    if data.eval_split == 'holdout':
        test_source = sources.hold_out(train_source, data.holdout, True)
    else:
        test_source = create(config, 'test')
    return sources.hold_out(train_source, data.holdout, False), test_source


def _over_mesh(config: ConfigDict, mesh: Mesh, train_source: Source,
               test_source: Source) -> tuple[Pipeline, Pipeline, EvalTransform | None]:
    """Both pipelines, and what the host makes of an image in evaluation; on devices, nothing."""
    data = config.data
    eval_batch = _eval_batch_size(config, len(test_source), mesh.shape['data'])
    if resident := _as_resident(config, train_source, test_source):
        train, test = (Resident(source, mesh, size, augmentation) for source, size, augmentation
                       in zip(resident, (config.batch_size, eval_batch),
                              (augmentation(config), None), strict=True))
        return train, test, None
    size = data.image_size
    if size is None:
        raise UserError('data.image_size must be set for images that are decoded as needed.')
    transform = EvalTransform(size, size if data.eval_resize is None else data.eval_resize)
    train, test = (
        Host(source, mesh, batch_size, kind, augmentation, threads=_threads(config),
             workers=data.workers, chunk_size=data.chunk_size,
             batches_ahead=data.batches_ahead, skip_unreadable=data.on_unreadable == 'skip')
        for source, batch_size, kind, augmentation in (
            (train_source, config.batch_size, train_transform(config), augmentation(config)),
            (test_source, eval_batch, transform, None)))
    return train, test, transform


def _eval_batch_size(config: ConfigDict, num_images: int, data_shards: int) -> int:
    """`eval.batch_size`, and no more than the images rounded up to a multiple of 8 per device.

    Anything beyond would be filler, for which there may not even be memory.
    """
    unit = 8 * data_shards
    return min(config.eval.batch_size, -(-num_images // unit) * unit)


def _check(config: ConfigDict) -> None:
    """Raises UserError where fields of `config.data` do not go together."""
    data = config.data
    for field, choices in (('pipeline', ('auto', 'resident', 'host')),
                           ('train_crop', ('pad', 'random_resized', 'scale_jitter')),
                           ('eval_split', ('test', 'holdout')),
                           ('on_unreadable', ('error', 'skip'))):
        if data[field] not in choices:
            raise UserError(f'data.{field} must be one of {", ".join(choices)}, '
                            f'got {data[field]!r}.')
    _check_augmentation(data)
    if data.eval_split == 'holdout' and not data.holdout:
        raise UserError("data.eval_split 'holdout' needs data.holdout, the number of training "
                        'images that are held out.')
    if data.pipeline == 'resident' and not _device_only(data):
        raise UserError("data.pipeline 'resident' crops with data.train_crop 'pad' only, without "
                        'RandAugment: set data.pipeline to host.')
    if data.train_crop == 'scale_jitter' and data.image_size and (
            data.jitter_sides[0] < data.image_size):
        raise UserError(f'data.jitter_sides must not be less than data.image_size, got '
                        f'{data.jitter_sides[0]} and {data.image_size}.')
    if data.eval_resize is not None and data.image_size and data.eval_resize < data.image_size:
        raise UserError(f'data.eval_resize must not be less than data.image_size, got '
                        f'{data.eval_resize} and {data.image_size}.')
    if (data.mixup_alpha or data.cutmix_alpha) and config.batch_size % 2:
        raise UserError(f'mixup and CutMix pair the images of a batch: batch_size must be even, '
                        f'got {config.batch_size}.')


def _check_augmentation(data: ConfigDict) -> None:
    """Raises UserError where a field of the augmentation makes no sense, whether used or not."""
    if data.train_crop == 'pad' and data.image_size and data.crop_padding >= data.image_size:
        raise UserError(f'data.crop_padding={data.crop_padding} must be less than '
                        f'data.image_size={data.image_size}.')
    if data.channels not in (1, 3):
        raise UserError(f'data.channels must be 1 or 3, got {data.channels}.')
    for field, what, most in (('crop_scale', 'shares of the area, above 0 and at most 1', 1),
                              ('crop_ratio', 'ratios of width to height, above 0', math.inf),
                              ('jitter_sides', 'numbers of pixels, above 0', math.inf)):
        pair = tuple(data[field])
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most or math.isinf(pair[1]):
            raise UserError(f'data.{field} must be two {what}, the smaller one first; got {pair}.')
    for field in ('color_noise', 'mixup_alpha', 'cutmix_alpha'):
        if not math.isfinite(data[field]):
            raise UserError(f'data.{field} must be a finite number, got {data[field]}.')
    if data.randaugment_magnitude > MAX_MAGNITUDE:
        raise UserError(f'data.randaugment_magnitude must be at most {MAX_MAGNITUDE}, got '
                        f'{data.randaugment_magnitude}.')
    for field in ('color_noise', 'randaugment_layers'):
        if data[field] and data.channels != 3:
            raise UserError(f'data.{field} is for colour images: set it to 0 where data.channels '
                            f'is {data.channels}.')


def _device_only(data: ConfigDict) -> bool:
    """Whether a training batch can be made from whole images on the device."""
    return data.train_crop == 'pad' and not data.randaugment_layers


def _as_resident(config: ConfigDict, train: Source,
                 test: Source) -> tuple[ArraySource, ArraySource] | None:
    """Both splits as arrays, where the on-device pipeline is asked for or fits; or none."""
    data = config.data
    if data.pipeline == 'host' or not _device_only(data):
        return None
    try:
        arrays = tuple(_as_array(config, source) for source in (train, test))
    except cache.UnequalSizesError as error:
        if data.pipeline == 'resident':
            raise UserError(f"data.pipeline 'resident' needs images of one size, and {error}: "
                            'set data.pipeline to host.') from error
        logging.info('Host pipeline, since %s', error)
        return None
    for array, source in zip(arrays, (train, test), strict=True):
        array.class_names = getattr(source, 'class_names', ())
    return arrays


def _as_array(config: ConfigDict, source: Source) -> ArraySource:
    data = config.data
    if isinstance(source, ArraySource):
        size, shape = source.images.nbytes, source.images.shape[1:]
    else:
        shape = _shape(source, data.on_unreadable == 'skip')
        size = len(source) * int(np.prod(shape))
    if data.image_size is not None and shape[:2] != (data.image_size, data.image_size):
        raise cache.UnequalSizesError(f'images have {shape[1]} x {shape[0]} pixels, not '
                                      f'{data.image_size} x {data.image_size}')
    if data.pipeline == 'auto' and size > data.resident_bytes:
        raise cache.UnequalSizesError(f'the images take {size} bytes')
    if isinstance(source, ArraySource):
        return source
    return cache.decoded(source, shape[0], data.cache,
                         skip_unreadable=data.on_unreadable == 'skip')


def _shape(source: Source, skip_unreadable: bool) -> tuple[int, ...]:
    """(H, W, C) of the first image that can be read."""
    for i in range(len(source)):
        item = source[i]
        if isinstance(item.image, np.ndarray):
            return item.image.shape
        try:
            return (*decode.image_size(item.image, item.name), 3)
        except decode.UnreadableImageError:
            if not skip_unreadable:
                raise
    raise UserError('none of the images can be read.')


def augmentation(config: ConfigDict) -> Augmentation:
    """What is done to training images on the device."""
    data = config.data
    on_device = data.train_crop == 'pad'
    return Augmentation(config.seed, data.crop_padding if on_device else 0,
                        data.flip and on_device, data.color_noise, data.mixup_alpha,
                        data.cutmix_alpha)


def train_transform(config: ConfigDict) -> TrainTransform:
    """What is done to training images on the host."""
    data = config.data
    return TrainTransform(data.image_size, config.seed, data.train_crop, tuple(data.crop_scale),
                          tuple(data.crop_ratio), tuple(data.jitter_sides), data.flip,
                          data.randaugment_layers, data.randaugment_magnitude)


def _threads(config: ConfigDict) -> int:
    if config.data.threads is not None:
        return config.data.threads
    return max(1, available_cores() // max(1, config.data.workers))
