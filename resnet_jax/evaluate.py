"""Evaluates trained networks with the paper's test protocols; every image counts exactly once.

  python -m resnet_jax.evaluate --workdir=runs/digits
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --protocol=ten_crop
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --checkpoint=weights/resnet101 --protocol=multi_scale

Several checkpoints form an ensemble: the softmax outputs of all views and networks are averaged.
--json prints eval/loss, eval/top1_error, eval/top5_error, eval/calibration_error and eval/count,
and eval/class_error, a list in label order; errors are in percent. Networks of other tasks are
evaluated as in training, one at a time.
"""

import json

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
RECALIBRATE = cli.flag(
    flags.DEFINE_integer, 'recalibrate_batches', 0,
    'Number of training batches of --config over which the batch-norm statistics are averaged '
    'first; 0: use those of the checkpoint.', lower_bound=0)
JSON = cli.json_flag()
PROCESSES = cli.process_flags()
# For the test protocols of a task; other tasks refuse them.
OPTIONS = (
    cli.flag(
        flags.DEFINE_enum, 'protocol', 'center_crop', ['center_crop', 'ten_crop', 'multi_scale'],
        'center_crop: resize the shorter side to --resize, then crop the centre. ten_crop: the '
        'four corners, the centre and their mirror images. multi_scale: apply the network fully '
        'convolutionally to the whole image at each of --scales, with the longer side cropped to '
        'a multiple of 32 pixels and at most twice the shorter side.'),
    cli.flag(
        flags.DEFINE_integer, 'resize', None,
        'Shorter side of the image before cropping. Default: data.eval_resize, or '
        'data.image_size.', lower_bound=1),
    cli.flag(
        flags.DEFINE_list, 'scales', ['224', '256', '384', '480', '640'],
        'Lengths of the shorter side for multi_scale, in pixels.'),
    cli.flag(
        flags.DEFINE_integer, 'batch_size', 128,
        'Crops per forward pass, over all devices of a process; fewer if the crops are larger.',
        lower_bound=1),
    cli.flag(
        flags.DEFINE_string, 'confusion', None,
        'File to write the confusion matrix to, tab-separated: one row per true class, one column '
        'per predicted class.'),
)


def main(_) -> None:
    from resnet_jax.distributed import processes

    paths = [*([WORKDIR.value] if WORKDIR.value else []), *CHECKPOINT.value]
    if not paths:
        raise UserError(cli.give('--workdir=DIR, or --checkpoint=DIR with --config=FILE', __name__))
    with processes.job(*(flag.value for flag in PROCESSES)):
        from resnet_jax.output import say
        from resnet_jax.training.evaluation import evaluate

        report = evaluate(paths, CONFIG.value, RECALIBRATE.value,
                          {option.name: option.value for option in OPTIONS},
                          [option.name for option in OPTIONS if option.present])
        say(json.dumps(report.values) if JSON.value else report.text)


if __name__ == '__main__':
    cli.run(main)
