"""Evaluates trained networks with the paper's test protocols; every image counts exactly once.

  python -m resnet_jax.evaluate --workdir=runs/digits
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --protocol=ten_crop
  python -m resnet_jax.evaluate --config=configs/imagenet_r50.py --config.data.path=DATA \\
      --checkpoint=weights/resnet50 --checkpoint=weights/resnet101 --protocol=multi_scale
  python -m resnet_jax.evaluate --workdir=runs/scenes_r20 --protocol=multi_scale --refine

Several checkpoints form an ensemble. Of classifiers, the softmax outputs of all views and networks
are averaged; --json prints eval/loss, eval/top1_error, eval/top5_error, eval/calibration_error and
eval/count, and eval/class_error, a list in label order; errors are in percent. Detectors propose
regions together, and their probabilities and boxes are averaged; --json prints the average
precisions of eval.metric, eval/class_ap and eval/count. Of a localizer, --json prints
eval/localization_error, the share of images in percent in which the box of the true class is wrong,
eval/top5_localization_error, where the five most probable classes take its place,
eval/baseline_error of a box in the centre, eval/mean_iou, eval/top1_error, eval/top5_error and
eval/count. Networks of other tasks are evaluated as in training, one at a time.
"""

import json

from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError

WORKDIR = cli.flag(
    flags.DEFINE_string, 'workdir', None,
    'Folder of a run. Evaluates its latest checkpoint, on the data of --config if given, otherwise '
    'on that of its config.json.')
CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights; one checkpoint of a run, RUN/checkpoints/STEP; or '
    'weights of the Hugging Face hub by name, such as hf:timm/resnet50.a1_in1k, which are '
    'downloaded and converted once. Several form an ensemble. The data is that of --config if '
    'given, otherwise that of the first checkpoint.')
CONFIG = cli.config_flag()
# For the test protocols of a task; other tasks refuse them.
OPTIONS = (
    cli.flag(
        flags.DEFINE_enum, 'protocol', None,
        ['center_crop', 'ten_crop', 'single', 'multi_scale'],
        'For classifiers, center_crop (the default): resize the shorter side to --resize, then '
        'crop the centre; ten_crop: the four corners, the centre and their mirror images; '
        'multi_scale: apply the network fully convolutionally to the whole image at each of '
        '--scales, with the longer side cropped to a multiple of 32 pixels and at most twice the '
        'shorter side. For detectors, single (the default): each image once, as in training; '
        'multi_scale: take the features of each region from the two of --scales at which it is '
        'nearest to 224 x 224 pixels, for a config with a shorter side of 600 and in proportion '
        'for others. For localizers, center_crop (the default), or multi_scale: apply the network '
        'to the whole image at each of --scales.'),
    cli.flag(
        flags.DEFINE_integer, 'resize', None,
        '(classifiers) Shorter side of the image before cropping. Default: data.eval_resize, or '
        'data.image_size.', lower_bound=1),
    cli.flag(
        flags.DEFINE_list, 'scales', None,
        'Lengths of the shorter side for multi_scale, in pixels. Default: 224,256,384,480,640 for '
        'classifiers; for detectors 200,400,600,800,1000 where the shorter side of the config is '
        '600, and in proportion for others; for localizers 1 and 1.5 times data.image_size.'),
    cli.flag(
        flags.DEFINE_integer, 'batch_size', None,
        'Images per forward pass, over all devices of a process; of classifiers, crops, and fewer '
        'if they are larger. Default: 128 for classifiers, eval.batch_size for detectors, or 8 '
        'per device, 32 per device for localizers.', lower_bound=1),
    cli.flag(
        flags.DEFINE_bool, 'refine', False,
        '(detectors) Classify and correct the corrected boxes once more, suppress among old and '
        'new ones, and let the boxes around each detection vote on it.'),
    cli.flag(
        flags.DEFINE_string, 'detections', None,
        "(detectors) Write all detections: to a file that ends in .json in COCO's results format, "
        "or to a folder in that of VOC, a file per class."),
    cli.flag(
        flags.DEFINE_string, 'confusion', None,
        '(classifiers) File to write the confusion matrix to, tab-separated: one row per true '
        'class, one column per predicted class.'),
)
RECALIBRATE = cli.flag(
    flags.DEFINE_integer, 'recalibrate_batches', 0,
    'Number of training batches of --config over which the batch-norm statistics are averaged '
    'first; 0: use those of the checkpoint.', lower_bound=0)
JSON = cli.json_flag()
PROCESSES = cli.process_flags()


def main(_) -> None:
    from resnet_jax.distributed import processes

    paths = [*([WORKDIR.value] if WORKDIR.value else []), *CHECKPOINT.value]
    if not paths:
        raise UserError(cli.give('--workdir=DIR, or --checkpoint=DIR with --config=FILE', __name__))
    with processes.job(*(flag.value for flag in PROCESSES), ends_on_sigterm=True):
        from resnet_jax.output import say
        from resnet_jax.training.evaluation import evaluate

        report = evaluate(paths, CONFIG.value, RECALIBRATE.value,
                          {option.name: option.value for option in OPTIONS},
                          [option.name for option in OPTIONS if option.present],
                          cli.set_fields())
        say(json.dumps(report.values) if JSON.value else report.text)


if __name__ == '__main__':
    cli.run(main)
