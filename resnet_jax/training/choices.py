"""Chooses sizes, batches and the number of steps from the images and the machine.

For runs that say `num_epochs`, such as those of configs/folder.py: what such a config leaves empty
is chosen once, when the run begins, and stored in its config.json.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import data
from resnet_jax.data import Source
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.sizes import text
from resnet_jax.data.transforms import image_shape
from resnet_jax.errors import UserError

# Fields that are chosen where they are None; see `config_lib.default`.
FIELDS = ('data.image_size', 'batch_size', 'eval.batch_size', 'num_steps', 'eval.every_steps',
          'schedule.learning_rate', 'schedule.warmup_steps')
# Fields that come with the image size of trained weights; see `program.completed`.
VIEW = ('data.eval_size', 'data.eval_resize', 'data.eval_crop_share')
# Fields of the evaluation split, chosen where it is 'auto'.
SPLIT = ('data.eval_split', 'data.holdout')

SAMPLE = 200  # images whose size is looked up
SIDES = (64, 224)  # of crops: the stem and the stages divide by 32
CROP_SHARE = 7 / 8  # of the shorter side of the image, as 224 of 256
IMAGES_PER_DEVICE = {'cpu': 32}  # more do not make a step of a CPU faster per image
IMAGES_PER_ACCELERATOR = 64
LEAST_BATCH, STEPS_PER_EPOCH = 8, 8
LEARNING_RATE = 0.05 / 64  # per image of the batch (Goyal et al., 2017), for SGD
WARMUP_SHARE, EVALUATIONS = 0.05, 10


class Machine(NamedTuple):
    """What a run has to compute on.

    Attributes:
      devices: along the batch.
      platform: such as 'cpu'.
    """

    devices: int
    platform: str

    @classmethod
    def of(cls, mesh: Mesh) -> 'Machine':
        return cls(mesh.shape['data'], mesh.devices.flat[0].platform)

    @property
    def most_images(self) -> int:
        """Images per device and step beyond which a batch is not chosen."""
        return IMAGES_PER_DEVICE.get(self.platform, IMAGES_PER_ACCELERATOR)


class Choice(NamedTuple):
    """The value of a field, and where it comes from."""

    value: Any
    reason: str


def choose(config: ConfigDict,
           machine: Machine | None = None) -> tuple[ConfigDict, dict[str, Choice]]:
    """Fills in what a config with `num_epochs` leaves empty, and the evaluation split 'auto'.

    Args:
      config: with its architecture, and the image size where it is that of trained weights; see
        `program.completed`.
      machine: None: the batches, and what depends on them, stay empty.

    Returns:
      The config, and what was chosen by the path of the field. Nothing is chosen that is set, so
      the data are opened only where something is not.

    Raises:
      UserError: the data is missing.
    """
    found: dict[str, Choice] = {}
    if config.data.eval_split == 'auto':
        split, count = data.eval_split(config)
        found['data.eval_split'] = Choice(split, _why(split, count, config))
        if count != config.data.holdout:
            found['data.holdout'] = Choice(count, 'a fifth of the training images, up to 5,000')
        config = _filled(config, found)
    fields = config_lib.leaves(config)
    empty = [name for name in FIELDS if fields[name] is None]
    if config.num_epochs is None or not empty or (machine is None and empty[0] != FIELDS[0]):
        return config, found
    source = data.create_source(config, 'train')
    images = len(source) - config.data.holdout
    if config.data.image_size is None:
        side = shorter_side(source)
        found['data.image_size'] = Choice(
            crop_side(side), f'for images with a median shorter side of {side} pixels')
    if machine is not None:
        found |= {name: choice for name, choice in _batches(config, images, machine).items()
                  if name in empty}
    return _filled(config, found), found


def as_begun(config: ConfigDict, begun: ConfigDict) -> tuple[ConfigDict, dict[str, Choice]]:
    """Fills in what was chosen when a run began; see `choose`.

    Args:
      config: that the run is resumed with, perhaps on another machine.
      begun: the config that is stored with its checkpoints.
    """
    fields, stored = config_lib.leaves(config), config_lib.leaves(begun)
    kept = (*FIELDS, *VIEW) if fields['data.image_size'] is None else FIELDS
    names = [name for name in kept if fields[name] is None and stored[name] is not None]
    if fields['data.eval_split'] == 'auto':
        names += SPLIT if not fields['data.holdout'] else SPLIT[:1]
    found = {name: Choice(stored[name], 'as when the run began') for name in names
             if stored[name] != fields[name]}
    return _filled(config, found), found


def shorter_side(source: Source) -> int:
    """The median shorter side of a sample of the images, in pixels.

    Raises:
      UserError: none of them can be read.
    """
    sides = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int):
        try:
            sides.append(min(image_shape(source[int(index)])))
        except UnreadableImageError:  # reported, or skipped, where it is decoded
            continue
    if not sides:
        raise UserError('none of the images can be read.')
    return int(np.median(sides))


def crop_side(side: int) -> int:
    """The side of crops for images with this shorter side: a multiple of 8 within SIDES."""
    return int(np.clip(int(CROP_SHARE * side) // 8 * 8, *SIDES))


def batch_size(images: int, machine: Machine, parts: int = 1, virtual: int | None = None) -> int:
    """Images per step: some steps per epoch, no more than a device computes well.

    Args:
      images: of the training split.
      machine: that the run has.
      parts: in which the gradient of a batch is computed.
      virtual: images that share batch-norm statistics.

    Returns:
      A multiple of the devices times the parts, each part of which fits `virtual`.
    """
    wanted = max(LEAST_BATCH, images // STEPS_PER_EPOCH) // (machine.devices * parts)
    per_device = min(machine.most_images, 1 << max(0, wanted.bit_length() - 1))
    part = machine.devices * per_device
    if virtual and part > virtual and part % virtual:
        part = math.lcm(machine.devices, virtual)
    return part * parts


def table(given: ConfigDict, config: ConfigDict, chosen: Mapping[str, Choice]) -> str:
    """What a run took from the images, the machine and the weights: a line for each field.

    Args:
      given: the config as it was before anything was filled in.
      config: all of it.
      chosen: see `choose`.
    """
    before, after = config_lib.leaves(given), config_lib.leaves(config)
    elsewhere = {'model.num_classes': 'counted in the data',
                 'data.image_size': 'as the weights that the run starts from'}
    lines = {name: chosen[name].reason if name in chosen else elsewhere[name]
             for name in ('model.num_classes', *SPLIT, *FIELDS)
             if name in chosen or (before[name] is None and name in elsewhere)}
    if config.num_epochs is None or not lines:
        return ''
    values = {name: text(after[name]) if name == 'data.image_size' else f'{after[name]:.3g}'
              if isinstance(after[name], float) else f'{after[name]:,}'
              if isinstance(after[name], int) else after[name] for name in lines}
    width, value_width = (max(map(len, column)) for column in (lines, values.values()))
    return '\n'.join([
        'chosen for this run; set any of them with --config.FIELD=VALUE:',
        *(f'  {name:{width}}  {values[name]:>{value_width}}  {reason}'
          for name, reason in lines.items())])


def _batches(config: ConfigDict, images: int, machine: Machine) -> dict[str, Choice]:
    """The fields of FIELDS that depend on the machine; what is set stays and counts for the rest.

    Args:
      config: see `choose`.
      images: to train on.
      machine: that the run has.
    """
    devices = f'{machine.devices} x {machine.platform}'
    size = config.batch_size or batch_size(
        images, machine, config.optimizer.accumulation_steps, config.model.virtual_batch_size)
    steps = config.num_steps or max(1, round(config.num_epochs * images / size))
    return {
        'batch_size': Choice(size, f'for {images:,} training images on {devices}'),
        'eval.batch_size': Choice(machine.devices * machine.most_images, f'for {devices}'),
        'num_steps': Choice(steps, f'num_epochs={config.num_epochs}, of {images:,} images'),
        'eval.every_steps': Choice(math.ceil(steps / EVALUATIONS),
                                   f'{EVALUATIONS} evaluations, each with a checkpoint'),
        'schedule.learning_rate': Choice(
            LEARNING_RATE * size, f'{64 * LEARNING_RATE:g} for 64 images, and in proportion'),
        'schedule.warmup_steps': Choice(int(WARMUP_SHARE * steps),
                                        f'{100 * WARMUP_SHARE:g} % of the steps'),
    }


def _why(split: str, count: int, config: ConfigDict) -> str:
    if split == 'test':
        return 'the data has an evaluation split'
    return f'the data has no evaluation split; {count:,} training images are held out'


def _filled(config: ConfigDict, found: Mapping[str, Choice]) -> ConfigDict:
    """A copy of a config with what was found; the config itself where nothing was."""
    if not found:
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name: choice.value for name, choice in found.items()})
    return config
