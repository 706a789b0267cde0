"""Every field of a configuration, its default and what it means; and the checks across fields.

The files in `configs/` start from `default()` and change a few fields. On the command line any
field is set with `--config.a.b=value`; `none` clears one that may be empty.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resnet_jax.errors import UserError

# Fields that decide where and how long a run executes, but not what it computes at a given step: a
# run resumes from its checkpoint when they change. (With a cosine the rate depends on num_steps.)
EXECUTION_FIELDS = (
    'num_steps', 'steps_per_call', 'xla_preset', 'model.unroll', 'model.remat',
    'model.stem_space_to_depth', 'init.checkpoint', 'init.resume_from', 'data.path',
    'data.pipeline', 'data.resident_bytes', 'data.on_unreadable', 'data.workers', 'data.threads',
    'data.chunk_size', 'data.batches_ahead', 'data.cache', 'eval', 'checkpoint', 'log', 'profile',
    'mesh', 'compilation_cache',
)

# Fields that may differ between the processes of one job, each of which has its own disk and cores.
LOCAL_FIELDS = ('init.checkpoint', 'data.path', 'data.workers', 'data.threads', 'data.chunk_size',
                'data.batches_ahead', 'data.cache', 'compilation_cache')

# What runs from before a field was added have computed, where that is not its default.
BEFORE = {'optimizer.ema_warmup': False}
# Fields that mean nothing while another one is empty.
MEANINGLESS_WITHOUT = {'optimizer.ema_warmup': 'optimizer.ema_decay'}
# Fields by the paths that they once had.
RENAMED: dict[str, str] = {}


def default() -> ConfigDict:
    """A configuration with every field there is. Base recipes fill in those that are empty."""
    config = ConfigDict()

    # Of the initial parameters, the order of the images, and the augmentation; below 2**32.
    config.seed = 0
    config.num_steps = placeholder(int)
    config.batch_size = placeholder(int)  # images a step, over all devices
    # Training steps in one call of the devices, where nothing is due before its end; single steps
    # otherwise. Worth it where a step takes no longer than its call, as small networks' on a GPU.
    config.steps_per_call = 1
    config.xla_preset = 'cpu'  # options of the compiler, see resnet_jax/xla/flags.py

    model = config.model = ConfigDict()
    model.family = placeholder(str)  # 'imagenet', 'cifar' or 'vgg'
    # Empty with init.checkpoint: the architecture of those weights.
    model.depth = placeholder(int)  # imagenet 18, 34, 50, 101, 152; cifar 6n+2; vgg 16, 19
    model.num_classes = placeholder(int)  # none: as many as the data has
    model.width = 64  # filters of the first stage: 64 on ImageNet, 16 on CIFAR
    model.plain = False  # the same stack without shortcuts
    model.shortcut = 'B'  # where the shape changes: 'A' zero padding, 'B' projection; 'C' always
    model.stride_in = 'v1'  # bottleneck stride: 'v1' first 1x1 (the paper), 'v1.5' 3x3
    model.pool_pad = 'both'  # where the stem's max-pooling pads: 'both' (PyTorch), 'end' (Caffe)
    model.zero_init_last_gamma = False  # start every block as the identity (Goyal et al., 2017)
    model.batch_norm = True  # of vgg only: the residual networks always have it
    model.dropout_rate = 0.5  # of vgg only
    # Images that share BN statistics; none: the whole batch, as for a batch that is smaller.
    model.virtual_batch_size = placeholder(int)
    model.bn_momentum = 0.9  # of the running averages
    model.bn_epsilon = 1e-5
    model.bn_unbiased_variance = True  # running variance with n / (n - 1), as in Caffe and PyTorch
    model.dtype = 'float32'  # of the computation: or 'bfloat16'; parameters stay float32
    model.unroll = True  # stages as straight-line code; False: a loop, for hundreds of layers
    # What the forward pass keeps for the gradient: 'none' leaves it to the compiler, 'conv' keeps
    # the outputs of convolutions, 'block' the inputs of blocks; the rest is computed again.
    model.remat = 'none'
    model.stem_space_to_depth = False  # of imagenet: the 7x7 convolution on blocks of 2x2 pixels

    # Where a new run starts; one that resumes from its own checkpoint ignores it.
    init = config.init = ConfigDict()
    init.checkpoint = ''  # weights of step 0: a workdir, checkpoint or conversion; '': random
    init.resume_from = ''  # a workdir or checkpoint, whose step and optimizer are taken as well
    init.new_head = True  # the last layer stays random, for other classes
    init.freeze = ()  # regular expressions; parameters whose path one is found in stay as they are
    init.freeze_bn = False  # keep the running statistics, and normalise by them in training too

    data = config.data = ConfigDict()
    data.source = placeholder(str)  # 'folder', 'tfds', 'shards', 'digits', 'synthetic'
    data.path = ''  # folder of the dataset, for the sources that need one
    data.tfds_name = ''  # of 'tfds': 'cifar10', 'imagenet2012:5.1.0', ...
    data.class_list = ''  # of 'folder': file of class names in label order; '': sorted by name
    data.label_file = ''  # of 'folder': file of labels for a flat evaluation folder
    data.holdout = 0  # training images that are held out, always the same ones
    data.eval_split = 'test'  # or 'holdout', these
    data.pipeline = 'auto'  # 'resident' on the devices, 'host', or by size
    data.resident_bytes = 2**30  # of 'auto': the largest split that is copied to every device
    # Height and width that the network sees; empty with init.checkpoint: those of its weights.
    data.image_size = placeholder(int)
    data.channels = 3  # of the images: 1 or 3
    data.eval_resize = placeholder(int)  # shorter side before the centre crop; none: image_size
    data.train_crop = 'pad'  # or 'random_resized', 'scale_jitter' (the paper, on ImageNet)
    data.crop_padding = 0  # ('pad' only) pixels of padding on each side
    data.crop_scale = (0.08, 1.0)  # of 'random_resized': share of the area
    data.crop_ratio = (3 / 4, 4 / 3)  # of 'random_resized': width / height
    data.jitter_sides = (256, 480)  # of 'scale_jitter': least and greatest shorter side
    data.flip = False  # random horizontal flips
    data.color_noise = 0.0  # deviation along the principal components of colour; the paper: 0.1
    data.randaugment_layers = 0  # operations an image; 0: no RandAugment
    data.randaugment_magnitude = 9  # of 30
    data.mixup_alpha = 0.0  # of the Beta distribution of weights; 0: no mixup
    data.cutmix_alpha = 0.0  # the same for CutMix; with both, each pair of images tosses a coin
    # 'per_channel' or 'per_pixel_mean' (the paper), of the training split; 'imagenet', the usual
    # constants; or 'none'.
    data.normalization = 'per_channel'
    data.on_unreadable = 'error'  # or 'skip': leave the image out, count and log it
    data.workers = 0  # processes that decode; 0: threads of this one only
    data.threads = placeholder(int)  # decoding threads a process; none: all cores, shared out
    data.chunk_size = 16  # images that a thread decodes in one go
    data.batches_ahead = 2  # batches decoded, and as many on the devices, ahead of their step
    data.cache = '~/.cache/resnet_jax/data'  # folder of decoded images and statistics

    loss = config.loss = ConfigDict()
    loss.label_smoothing = 0.0

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = 'sgd'  # or 'lars', 'adamw'
    optimizer.momentum = 0.9
    optimizer.momentum_form = 'paper'  # learning rate inside the momentum (Caffe), or 'pytorch'
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4
    optimizer.decay_bn_and_bias = True  # the paper decays every weight
    optimizer.clip_norm = placeholder(float)  # largest global norm of the gradient
    optimizer.accumulation_steps = 1  # parts that a batch is computed in, one after the other
    optimizer.ema_decay = placeholder(float)  # evaluate a moving average of the parameters
    optimizer.ema_warmup = True  # the decay grows with the steps, from 0.1 to ema_decay
    optimizer.lars_trust_coefficient = 0.001
    optimizer.adamw_b1 = 0.9
    optimizer.adamw_b2 = 0.999
    optimizer.adamw_epsilon = 1e-8

    schedule = config.schedule = ConfigDict()
    schedule.name = 'steps'  # or 'plateau', 'cosine', 'constant'
    schedule.learning_rate = 0.1
    schedule.boundaries = ()  # of 'steps': where the rate is multiplied by the factor
    schedule.factor = 0.1  # of 'steps' and 'plateau'
    schedule.plateau_window = placeholder(int)  # steps over which the training error is averaged
    schedule.plateau_patience = 3  # windows without a better error before the rate falls
    schedule.plateau_threshold = 1e-2  # what counts as better, relative to the best error
    schedule.plateau_min_factor = 1e-3  # the product of all factors stays above this
    schedule.warmup = 'none'  # or 'linear', 'error'
    schedule.warmup_steps = 0  # of 'linear'
    schedule.warmup_learning_rate = 0.01  # of 'error', until the training error is low enough
    schedule.warmup_error = 80.0  # of 'error', percent
    schedule.warmup_window = 20  # of 'error': steps over which the training error is averaged

    evaluation = config.eval = ConfigDict()
    evaluation.every_steps = placeholder(int)  # none: at the end only
    evaluation.batch_size = placeholder(int)  # images per step; capped at the size of the split
    # Training batches, an epoch at most, over which the BN statistics of the last evaluation are
    # averaged; 0: the running averages.
    evaluation.recalibrate_batches = 0

    checkpoint = config.checkpoint = ConfigDict()
    # Every evaluation is preceded by a checkpoint; none: no others.
    checkpoint.every_steps = placeholder(int)
    checkpoint.keep_last = 2
    checkpoint.keep_best = True  # and the one with the lowest top-1 error

    config.log = ConfigDict()
    config.log.every_steps = 100

    profile = config.profile = ConfigDict()
    profile.start_step = 10
    profile.num_steps = 0  # steps traced into workdir/profile; 0: none

    mesh = config.mesh = ConfigDict()
    mesh.data = -1  # devices along the batch; -1: all that are left
    mesh.model = 1  # devices along the parameters
    mesh.parameters = 'replicated'  # or 'fsdp': every array split over the axis 'data'
    mesh.rules = ()  # exceptions: pairs (regular expression on the path, axes by dimension)

    # Folder of compiled programs, shared by all runs and kept below 2 GiB; '' switches it off.
    config.compilation_cache = '~/.cache/resnet_jax/xla'
    return config.lock()  # a misspelt field in a config file is an error


# Fields that may be empty in a run; every other one must have a value.
OPTIONAL_FIELDS = (
    'model.virtual_batch_size', 'data.eval_resize', 'data.threads', 'optimizer.clip_norm',
    'optimizer.ema_decay',
    'schedule.plateau_window', 'eval.every_steps', 'checkpoint.every_steps',
)
# Fields that count something, and the least that they may be.
LEAST = {
    'num_steps': 1, 'batch_size': 1, 'steps_per_call': 1, 'data.image_size': 1, 'data.channels': 1,
    'data.crop_padding': 0, 'data.holdout': 0, 'data.resident_bytes': 0, 'data.eval_resize': 1,
    'data.color_noise': 0, 'data.randaugment_layers': 0, 'data.randaugment_magnitude': 0,
    'data.mixup_alpha': 0, 'data.cutmix_alpha': 0, 'data.workers': 0, 'data.threads': 1,
    'data.chunk_size': 1, 'data.batches_ahead': 1, 'model.virtual_batch_size': 1,
    'optimizer.accumulation_steps': 1,
    'schedule.plateau_window': 1, 'schedule.plateau_patience': 1, 'schedule.warmup_steps': 0,
    'schedule.warmup_window': 1, 'eval.every_steps': 1, 'eval.batch_size': 1,
    'eval.recalibrate_batches': 0, 'checkpoint.every_steps': 1, 'checkpoint.keep_last': 1,
    'log.every_steps': 1, 'profile.start_step': 0, 'profile.num_steps': 0,
    'model.bn_epsilon': 0, 'optimizer.weight_decay': 0, 'optimizer.lars_trust_coefficient': 0,
    'optimizer.adamw_epsilon': 0, 'schedule.plateau_threshold': 0,
    'schedule.plateau_min_factor': 0, 'schedule.warmup_learning_rate': 0,
}
# Fields that are a share, at least 0 and below 1.
SHARES = (
    'model.dropout_rate', 'model.bn_momentum', 'loss.label_smoothing', 'optimizer.momentum',
    'optimizer.ema_decay', 'optimizer.adamw_b1', 'optimizer.adamw_b2', 'schedule.factor',
)


def leaves(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Every field by its path, such as 'model.depth', as JSON would give it back."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields.update(leaves(value, f'{prefix}{name}.'))
        else:
            fields[prefix + name] = json.loads(json.dumps(value))
    return fields


def common_fields(config: ConfigDict) -> dict[str, str]:
    """The fields that must be the same in all processes of a job, as JSON by path."""
    return {name: json.dumps(value) for name, value in leaves(config).items()
            if name not in LOCAL_FIELDS}


def check(config: ConfigDict, data_shards: int) -> None:
    """Checks that the fields are there and fit one another, before any time is spent.

    Args:
      config: see `default`.
      data_shards: devices along the batch.

    Raises:
      UserError: the sentence names the fields.
    """
    fields = leaves(config)
    check_ranges(fields)
    parts = config.optimizer.accumulation_steps
    for name, divisor in (('batch_size', data_shards * parts), ('eval.batch_size', data_shards)):
        if fields[name] % divisor:
            what = 'the number of data-parallel devices'
            if divisor != data_shards:
                what += f' ({data_shards}) times optimizer.accumulation_steps ({parts})'
            raise UserError(
                f'{name}={fields[name]} must be a multiple of {divisor}, {what}.')
    size, part = config.model.virtual_batch_size, config.batch_size // parts
    if size is not None and part > size and part % size:
        raise UserError(
            f'model.virtual_batch_size={size} must divide the {part} images that are normalised '
            'together, batch_size over optimizer.accumulation_steps.')
    normalised = config.model.family != 'vgg' or config.model.batch_norm
    if config.eval.recalibrate_batches and not normalised:
        raise UserError('eval.recalibrate_batches must be 0 for a network without batch '
                        'normalisation.')
    if config.init.checkpoint and config.init.resume_from:
        raise UserError('init.checkpoint and init.resume_from cannot both be set: the first starts '
                        'at step 0 with the weights alone, the second at the step of the '
                        'checkpoint.')


def check_ranges(fields: dict[str, Any]) -> None:
    """Checks every field by itself.

    Args:
      fields: values by path, see `leaves`.

    Raises:
      UserError: a field is empty or out of its range.
    """
    for name, value in fields.items():
        if value is None:
            if name not in OPTIONAL_FIELDS:
                raise UserError(f'{name} is not set; pass --config.{name}=VALUE.')
            continue
        if not all(map(math.isfinite, floats(value))):
            raise UserError(f'{name} must be finite, got {value}.')
        if name == 'seed' and not 0 <= value < 2**32:
            raise UserError(f'seed must be from 0 to 2**32 - 1, got {value}.')
        if name in LEAST and value < LEAST[name]:
            raise UserError(f'{name} must be at least {LEAST[name]}, got {value}.')
        if name in SHARES and not 0 <= value < 1:
            raise UserError(f'{name} must be at least 0 and below 1, got {value}.')
    boundaries = fields.get('schedule.boundaries', ())
    if any(not isinstance(step, int) for step in boundaries):
        raise UserError(f'schedule.boundaries must be numbers of steps, got {boundaries}.')


def floats(value: Any) -> Iterator[float]:
    """The floats in the value of a field, however deep its sequences are."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from floats(part)
    elif isinstance(value, float):
        yield value


def upgrade(stored: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a stored config, of whatever time, as they are called today.

    Args:
      stored: `leaves` of a config that may lack fields of today, and have others.

    Returns:
      Every field of today, and the names of the stored fields that are unknown today. What is
      missing has the value that computes what was computed before there was the field.
    """
    known = leaves(default())
    renamed = {RENAMED.get(name, name): value for name, value in stored.items()}
    before = {**known, **{name: value for name, value in BEFORE.items() if name in known}}
    return ({name: renamed.get(name, value) for name, value in before.items()},
            [name for name in renamed if name not in known])


def from_stored(content: Any) -> tuple[ConfigDict, list[str]]:
    """A config from what a config.json holds.

    Args:
      content: the file's content, parsed.

    Returns:
      The config, and the names of stored fields that are unknown today; see `upgrade`.

    Raises:
      ValueError: it is no config, or a value is of another type than its field.
    """
    if not isinstance(content, dict):
        raise ValueError('not a JSON object')
    fields, unknown = upgrade(leaves(ConfigDict(content)))
    config = default()
    for name, value in fields.items():
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f'{name} cannot be {json.dumps(value)}') from error
    return config, unknown


def differences(config: ConfigDict, stored: dict[str, Any]) -> list[str]:
    """Fields that a run cannot resume with, since they change what it computes.

    Args:
      config: of the run that is about to start.
      stored: `leaves` of the run that wrote the checkpoint, which may be of another time.

    Returns:
      One 'field: stored -> new' for each, in the order of the fields.
    """
    new, (old, _) = leaves(config), upgrade(stored)
    return [f'{name}: {old[name]} -> {new[name]}' for name in new
            if old[name] != new[name] and not _is_free(name, config)
            and not _is_meaningless(name, old, new)]


def _is_meaningless(name: str, *configs: dict[str, Any]) -> bool:
    other = MEANINGLESS_WITHOUT.get(name)
    return other is not None and all(config[other] is None for config in configs)


def _is_free(name: str, config: ConfigDict) -> bool:
    """Whether a run may go on with another value of this field."""
    if name == 'num_steps' and config.schedule.name == 'cosine':
        return False
    return any(name == field or name.startswith(field + '.') for field in EXECUTION_FIELDS)
