"""The one place that checks fields of `config.data` against one another."""

import math

from ml_collections import ConfigDict

from resnet_jax.data.decode import FILTERS
from resnet_jax.data.normalization import KINDS
from resnet_jax.data.randaugment import MAX_MAGNITUDE
from resnet_jax.data.sizes import eval_resize, eval_size, image_size, text
from resnet_jax.errors import UserError

CHOICES = {
    'pipeline': ('auto', 'resident', 'host'),
    'train_crop': ('pad', 'random_resized', 'scale_jitter'),
    'eval_split': ('test', 'holdout', 'auto'), 'on_unreadable': ('error', 'skip'),
    'normalization': KINDS, 'bad_boxes': ('error', 'skip'),
    'eval_filter': tuple(FILTERS), 'train_filter': (*FILTERS, 'random'),
}
# Pairs of numbers: what they are, and the most that they may be.
PAIRS = {'crop_scale': ('shares of the area, above 0 and at most 1', 1),
         'crop_ratio': ('ratios of width to height, above 0', math.inf),
         'jitter_sides': ('numbers of pixels, above 0', math.inf)}


def check(config: ConfigDict) -> None:
    """Checks that fields of `config.data` make sense and go together; reads no data.

    `resnet_jax.config.check` has looked at their ranges before.

    Raises:
      UserError: names the field and says what it must be.
    """
    data = config.data
    check_choices(data)
    if data.channels not in (1, 3):
        raise UserError(f'data.channels must be 1 or 3, got {data.channels}.')
    for field, (what, most) in PAIRS.items():
        pair = tuple(data[field])
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most or math.isinf(pair[1]):
            raise UserError(f'data.{field} must be two {what}, the smaller one first; got {pair}.')
    for field in ('color_noise', 'mixup_alpha', 'cutmix_alpha'):
        if not math.isfinite(data[field]):
            raise UserError(f'data.{field} must be a finite number, got {data[field]}.')
    _check_sides(data)
    _check_augmentation(config)
    if data.eval_split == 'holdout' and not data.holdout:
        raise UserError("data.eval_split 'holdout' needs data.holdout, the number of training "
                        'images that are held out.')
    if data.pipeline == 'resident' and not on_device_only(data):
        raise UserError("data.pipeline 'resident' crops with data.train_crop 'pad' only, without "
                        'RandAugment and without data.eval_size: set data.pipeline to host.')


def check_choices(data: ConfigDict) -> None:
    """Raises UserError where a field that has a few possible values has another one."""
    for field, choices in CHOICES.items():
        if data[field] not in choices:
            raise UserError(f'data.{field} must be one of {", ".join(choices)}, '
                            f'got {data[field]!r}.')


def on_device_only(data: ConfigDict) -> bool:
    """Whether a training batch can be made from whole images on the device."""
    return data.train_crop == 'pad' and not data.randaugment_layers and data.eval_size is None


def _check_sides(data: ConfigDict) -> None:
    """Raises UserError where a length in pixels does not go with the size of the image."""
    if data.image_size is None:
        return
    shorter, named = min(image_size(data)), f'data.image_size={text(image_size(data))}'
    if data.train_crop == 'pad' and data.crop_padding >= shorter:
        raise UserError(f'data.crop_padding={data.crop_padding} must be less than {named}.')
    if data.train_crop == 'scale_jitter' and data.jitter_sides[0] < shorter:
        raise UserError(f'data.jitter_sides={data.jitter_sides[0]} must not be less than {named}.')
    if data.eval_size is not None:
        named = f'data.eval_size={text(eval_size(data))}'
        if data.normalization == 'per_pixel_mean' and eval_size(data) != image_size(data):
            raise UserError(f"data.normalization 'per_pixel_mean' subtracts an image of one size: "
                            f'data.image_size={text(image_size(data))} must be {named}.')
    if eval_resize(data) < min(eval_size(data)):
        raise UserError(f'data.eval_resize={data.eval_resize} must not be less than {named}.')


def _check_augmentation(config: ConfigDict) -> None:
    """Raises UserError where a field of the augmentation makes no sense, whether used or not."""
    data = config.data
    if data.randaugment_magnitude > MAX_MAGNITUDE:
        raise UserError(f'data.randaugment_magnitude must be at most {MAX_MAGNITUDE}, got '
                        f'{data.randaugment_magnitude}.')
    for field in ('color_noise', 'randaugment_layers'):
        if data[field] and data.channels != 3:
            raise UserError(f'data.{field} is for colour images: set it to 0 where data.channels '
                            f'is {data.channels}.')
    if data.normalization == 'imagenet' and data.channels != 3:
        raise UserError("data.normalization 'imagenet' is for colour images, and data.channels is "
                        f'{data.channels}.')
    if (data.mixup_alpha or data.cutmix_alpha) and config.batch_size % 2:
        raise UserError(f'mixup and CutMix pair the images of a batch: batch_size must be even, '
                        f'got {config.batch_size}.')
