"""A ResNet on ImageNet on a TPU slice or a GPU cluster: the paper's recipe, scaled.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_pod.py:r152,v5e-256

The argument names the depth and the devices, and may name the batch: r50,h100-16 is ResNet-50 on
two machines with eight H100 each, r152,v5e-256,8192 has 8,192 images per step. TPUs are counted in
chips (Google Cloud's names of v3, v4 and v5p count cores, two per chip: its v5p-128 is v5p-64
here); r152,2*v5e-256 has two slices of 256 chips, which the data-center network joins. Everything
that follows from these is printed before the run. Check it beforehand with

  python -m resnet_jax.compile --config=configs/imagenet_pod.py:r152,v5e-256
  python -m resnet_jax.compile '--config=configs/imagenet_pod.py:r152,2*v5e-256'

The batch and the learning rate scale as in P. Goyal et al., "Accurate, Large Minibatch SGD:
Training ImageNet in 1 Hour", 2017, up to 8,192 images, and beyond with LARS (Y. You et al., "Large
Batch Training of Convolutional Networks", 2017). The steps of `configs/imagenet.py` are those of
256 images, and shrink in proportion.
"""

import math
import re

from configs import imagenet
from resnet_jax.config.derived import derive
from resnet_jax.errors import UserError
from resnet_jax.xla import topologies

IMAGES = 1_281_167  # of an epoch
BATCH, MOST = 4_096, 8_192  # by default, and up to which the linear rule was shown to hold
# Images per device by default, by its memory: up to that many bytes.
IMAGES_PER_DEVICE = ((16 * 2**30, 128), (math.inf, 256))
# The rates of LARS and their epochs of warm-up in MLPerf's reference for TPUs, for batches below.
LARS_RATES = ((16_384, 10.0, 5), (32_768, 25.0, 5), (math.inf, 32.0, 14))
FORM = ('DEPTH,DEVICES or DEPTH,DEVICES,BATCH, such as r152,v5e-256, r152,2*v5e-256 for two slices '
        'or r50,h100-16,4096')


def get_config(argument: str = 'r50,v5e-16'):
    match = re.fullmatch(r'r(\d+),(?:(\d+)\*)?(\w+)-(\d+)(?:,(\d+))?', argument)
    if not match:
        raise UserError(f'imagenet_pod takes {FORM}; got {argument!r}.')
    config, depth = imagenet.get_config(), int(match[1])
    depths = (18, 34, 50, 101, 152)
    if depth not in depths:
        raise UserError(f'there is no r{depth}: the depths are {", ".join(map(str, depths))}.')
    config.model.depth = depth
    slices, kind, count = int(match[2] or 1), match[3], int(match[4])
    devices = topologies.describe(topologies.standard(kind, count, slices))
    derive(config, 'topology', devices.name, f'{devices.count:,} {devices.device}s' + (
        f': {slices} slices of {kind}-{count}' if slices > 1 else ''))
    _scale(config, devices, int(match[5]) if match[5] else None)
    return config


def _scale(config, devices: topologies.Topology, batch: int | None) -> None:
    """Derives all that depends on the batch and the devices."""
    most = next(images for memory, images in IMAGES_PER_DEVICE if devices.memory <= memory)
    chosen = 'as given'
    if batch is None:
        batch = min(BATCH // devices.count or 1, most) * devices.count
        chosen = (f'at most {most} per {devices.device} and {BATCH:,} in all'
                  if batch <= BATCH else f'one per {devices.device}')
    if batch % devices.count or not batch:
        lower = batch // devices.count * devices.count
        nearest = f'nearest are {lower} and' if lower else 'smallest is'
        raise UserError(f'a batch of {batch} cannot be divided among {devices.count} devices; the '
                        f'{nearest} {lower + devices.count}.')
    images, times, epoch = batch // devices.count, batch / config.batch_size, IMAGES / batch
    steps = f'that of 256 images, divided by {times:g}'
    lars = batch > MOST
    virtual = max(n for n in range(1, config.model.virtual_batch_size + 1) if images % n == 0)
    if lars:
        rate, warmup = next(values for below, *values in LARS_RATES if batch < below)
        rule = 'LARS in the MLPerf reference for TPUs'
    else:
        rate, warmup = 0.1 * batch / 256, 5 if times > 1 else 0
        rule = '0.1 per 256 images, Goyal et al., section 2.1'

    for field, value, source in (
            ('batch_size', batch, chosen),
            ('model.virtual_batch_size', virtual,
             f"the paper's 32, or a divisor of the {images} images per {devices.device}"),
            ('model.dtype', 'bfloat16', 'parameters and statistics stay float32'),
            ('optimizer.name', 'lars' if lars else 'sgd', f'LARS above {MOST:,} images'),
            ('schedule.learning_rate', rate, rule),
            ('schedule.warmup', 'linear' if warmup else 'none', 'Goyal et al., section 2.2'),
            ('schedule.warmup_from', 0.0 if lars else 0.1, 'LARS: 0' if lars else
             'the rate of 256 images'),
            ('schedule.warmup_steps', math.floor(warmup * epoch + 0.5), f'{warmup} epochs'),
            ('num_steps', _rounded(config.num_steps / times), steps),
            ('schedule.plateau_window', _rounded(config.schedule.plateau_window / times), steps),
            ('eval.every_steps', _rounded(config.eval.every_steps / times), steps),
            ('eval.batch_size', batch, 'as batch_size'),
            ('eval.recalibrate_batches', _rounded(config.eval.recalibrate_batches / times), steps),
            ('checkpoint.every_steps', 0,
             'automatic: from the measured times of a step and a save')):
        derive(config, field, value, source)


def _rounded(steps: float) -> int:
    return max(1, math.floor(steps + 0.5))
