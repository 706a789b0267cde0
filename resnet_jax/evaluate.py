"""Evaluates trained networks with the paper's test protocols; every image counts exactly once.

  python -m resnet_jax.evaluate --workdir=runs/digits
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --protocol=ten_crop
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --checkpoint=weights/resnet101 --protocol=multi_scale

Several checkpoints form an ensemble: the softmax outputs of all views and networks are averaged.
--json prints eval/loss, eval/top1_error, eval/top5_error, eval/calibration_error and eval/count,
and eval/class_error, a list in label order; errors are in percent.
"""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
WORKDIR = cli.flag(
    flags.DEFINE_string, 'workdir', None,
    'Folder of a run. Evaluates its latest checkpoint, on the data of --config if given, otherwise '
    'on that of its config.json.')
CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights, or one checkpoint of a run, RUN/checkpoints/STEP. '
    'Several form an ensemble. The data is that of --config if given, otherwise that of the first '
    'checkpoint.')
PROTOCOL = cli.flag(
    flags.DEFINE_enum, 'protocol', 'center_crop', ['center_crop', 'ten_crop', 'multi_scale'],
    'center_crop: resize the shorter side to --resize, then crop the centre. ten_crop: the four '
    'corners, the centre and their mirror images. multi_scale: apply the network fully '
    'convolutionally to the whole image at each of --scales, with the longer side cropped to a '
    'multiple of 32 pixels and at most twice the shorter side.')
RESIZE = cli.flag(
    flags.DEFINE_integer, 'resize', None,
    'Shorter side of the image before cropping. Default: data.eval_resize, or data.image_size.',
    lower_bound=1)
SCALES = cli.flag(
    flags.DEFINE_list, 'scales', ['224', '256', '384', '480', '640'],
    'Lengths of the shorter side for multi_scale, in pixels.')
BATCH_SIZE = cli.flag(
    flags.DEFINE_integer, 'batch_size', 128,
    'Crops per forward pass, over all devices of a process; fewer if the crops are larger.',
    lower_bound=1)
RECALIBRATE = cli.flag(
    flags.DEFINE_integer, 'recalibrate_batches', 0,
    'Number of training batches of --config over which the batch-norm statistics are averaged '
    'first; 0: use those of the checkpoint.', lower_bound=0)
CONFUSION = cli.flag(
    flags.DEFINE_string, 'confusion', None,
    'File to write the confusion matrix to, tab-separated: one row per true class, one column per '
    'predicted class.')
JSON = cli.json_flag()
PROCESSES = cli.process_flags()

WORST = 5  # classes that the printed report names


def main(_) -> None:
    from resnet_jax.distributed import processes

    paths = [*([WORKDIR.value] if WORKDIR.value else []), *CHECKPOINT.value]
    if not paths:
        raise UserError(cli.give('--workdir=DIR, or --checkpoint=DIR with --config=FILE', __name__))
    with processes.job(*(flag.value for flag in PROCESSES)):
        evaluate(paths)


def evaluate(paths: list[str]) -> None:
    """Evaluates the networks of these folders together, as the flags say, and reports.

    Raises:
      UserError: the networks or the data are not there, or do not fit one another.
    """
    import jax

    from resnet_jax.output import say, write_whole
    from resnet_jax.tasks.classification import classifier, inference
    from resnet_jax.tasks.classification.scores import confusion_table, score
    from resnet_jax.xla import backend, compilation_cache

    backend.devices()
    networks = [classifier.load(path) for path in paths]
    config = CONFIG.value or networks[0].config
    if config.data.source is None:
        raise UserError(f'{paths[0]} does not say which data to evaluate on; give --config=FILE '
                        'and, for a folder of images, --config.data.path=DIR.')
    compilation_cache.use(config.compilation_cache)
    source = test_source(config)
    check_networks(networks, paths, source.num_classes)
    if RECALIBRATE.value:
        networks = [recalibrated(network, config, RECALIBRATE.value) for network in networks]
    predictions = inference.predict(
        networks, source, views_of(config, networks[0]),
        BATCH_SIZE.value, skip_unreadable=config.data.on_unreadable == 'skip')
    scores = score(predictions.log_probabilities, predictions.labels)
    classes = class_names(networks, source)
    if CONFUSION.value and jax.process_index() == 0:
        try:
            write_whole(pathlib.Path(CONFUSION.value), confusion_table(scores.confusion, classes))
        except OSError as error:
            raise UserError(f'{CONFUSION.value} cannot be written: {error.strerror}.') from error
    if JSON.value:
        errors = [None if error != error else error for error in scores.class_error.tolist()]
        say(json.dumps({**scores.report(), 'eval/class_error': errors}))
    else:
        _print(scores, classes, predictions.skipped, say)


def class_names(networks, source) -> Sequence[str]:
    """The names of the classes in label order.

    Those that are stored with a network, otherwise those of the data, otherwise what `load` has.
    """
    names = [network.classes for network in networks if network.named]
    names.append(getattr(source, 'class_names', ()))
    return next((n for n in names if len(n) == source.num_classes), networks[0].classes)


def test_source(config):
    """The evaluation split of `config.data`.

    Raises:
      UserError: the data is not there.
    """
    from resnet_jax import data
    from resnet_jax.data import sources

    if config.data.eval_split == 'holdout':
        return sources.hold_out(data.create_source(config, 'train'), config.data.holdout, True)
    return data.create_source(config, 'test')


def check_networks(networks, paths, num_classes: int) -> None:
    """Raises UserError where networks do not fit one another or the data."""
    channels = networks[0].config.data.channels
    for network, path in zip(networks, paths, strict=True):
        known = network.config.model.num_classes
        if known != num_classes:
            raise UserError(
                f'{path} was trained on {known} classes, but the data has {num_classes}. Set '
                "data.class_list to a file of the network's classes.")
        if network.config.data.channels != channels:
            raise UserError(
                f'{path} and {paths[0]} are not an ensemble: their images have '
                f'{network.config.data.channels} and {channels} channels.')


def views_of(config, network):
    """The views that the flags ask for, of the size that the config or the network says."""
    from resnet_jax.data.views import Views

    size = config.data.image_size or network.config.data.image_size
    resize = RESIZE.value or config.data.eval_resize or size
    if resize < size:
        raise UserError(f'--resize ({resize}) must not be less than data.image_size ({size}).')
    try:
        scales = tuple(int(scale) for scale in SCALES.value)
    except ValueError as error:
        raise UserError(f'--scales must be numbers with commas between, got '
                        f'{",".join(SCALES.value)}.') from error
    if not scales or min(scales) < 1:
        raise UserError('--scales must name at least one number, none below 1.')
    return Views(PROTOCOL.value, size, resize, scales)


def recalibrated(network, config, batches: int):
    """The network with running statistics as a strict average over training batches.

    Args:
      network: a `Classifier`.
      config: whose training data and batches are used.
      batches: how many.

    Raises:
      UserError: the network has no batch normalisation, or the config describes no training.
    """
    import jax
    import numpy as np

    from resnet_jax.distributed import sharding
    from resnet_jax.training import program as program_lib
    from resnet_jax.training import state
    from resnet_jax.training.state import TrainState
    from resnet_jax.weights.stored import weights_state

    if not network.variables.get('batch_stats'):
        raise UserError('--recalibrate_batches is for networks with batch normalisation.')
    config, virtual = copy.deepcopy(config), config.model.virtual_batch_size
    config.model = copy.deepcopy(network.config.model)  # that of the network stays as it is
    config.model.virtual_batch_size = virtual
    program = program_lib.build(config, sharding.create_mesh(config))
    weights = jax.device_put(
        TrainState(**weights_state(network.variables, network.normalization)), program.everywhere)
    statistics = jax.jit(program.batch_statistics, out_shardings=program.everywhere)

    def collect():
        feed = program.train_data.inputs(0)
        for step in range(batches):
            yield statistics(weights, next(feed), jax.device_put(
                np.int32(step), program.everywhere))[1]

    batch_stats = jax.tree.map(np.asarray, state.recalibrate(collect()))
    return dataclasses.replace(
        network, variables={**network.variables, 'batch_stats': batch_stats})


def _print(scores, classes, skipped: int, say) -> None:
    say(f'top-1 error {scores.top1_error:.2f} %  top-5 error {scores.top5_error:.2f} %  '
        f'loss {scores.loss:.4f}  calibration error {scores.calibration_error:.2f} %  '
        f'on {scores.count:,} images'
        + (f'; {skipped:,} could not be read' if skipped else ''))
    errors = {name: error for name, error in zip(classes, scores.class_error, strict=True)
              if error == error}
    worst = sorted(errors, key=errors.get, reverse=True)[:WORST]
    say('highest top-1 errors of a class: '
        + ', '.join(f'{name.split(",")[0]} {errors[name]:.2f} %' for name in worst))


if __name__ == '__main__':
    cli.run(main)
