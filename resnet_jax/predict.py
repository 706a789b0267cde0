"""Predicts images; a classifier names the most probable classes of each, a detector its objects.

  python -m resnet_jax.predict --checkpoint=weights/resnet50 cat.jpg photos/
  python -m resnet_jax.predict --checkpoint=hf:timm/resnet50.a1_in1k cat.jpg
  python -m resnet_jax.predict --checkpoint=runs/scenes_r20 --draw=pictures photos/
  cat cat.jpg | python -m resnet_jax.predict --checkpoint=weights/resnet50 -
  find photos -name '*.jpg' | python -m resnet_jax.predict --checkpoint=weights/resnet50 -

Accepts image files, folders, and - for standard input, which is an image or a list of files, one
per line. Prints a table, or one JSON object per line with --json: `file` and, from a classifier,
`classes`, each with `index`, `name` and `probability`; from a detector, `detections`, each with
`box` (x1, y1, x2, y2, in pixels of the file), `index`, `name`, `score` and, if it has a mask
branch, `mask` (COCO's RLE); from a localizer, `classes`, each also with `box` and `score`. Bytes of
file names that are not UTF-8 are written as \\xNN. Files that cannot be read are reported on
stderr, and the exit status is then 1; all other files are still predicted.
"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError, readable

CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights; one checkpoint of a run, RUN/checkpoints/STEP; or '
    'weights of the Hugging Face hub by name, such as hf:timm/resnet50.a1_in1k, which are '
    'downloaded and converted once. Several form an ensemble.')
TOP = cli.flag(
    flags.DEFINE_integer, 'top', 5, 'Number of classes to print, most probable first.',
    lower_bound=1)
MIN_SCORE = cli.flag(
    flags.DEFINE_float, 'min_score', 0.5, '(detectors) Least score of an object, from 0 to 1.',
    lower_bound=0.0, upper_bound=1.0)
DRAW = cli.flag(
    flags.DEFINE_string, 'draw', None,
    '(detectors, localizers) Folder for pictures of the images with their objects, as PNG; of a '
    'localizer, with the box of the most probable class. It is created.')
JSON = cli.json_flag()


def main(argv: Sequence[str]) -> int:
    from resnet_jax.output import warn
    from resnet_jax.tasks import prediction
    from resnet_jax.tasks.loading import load_all
    from resnet_jax.xla import backend, compilation_cache

    if not CHECKPOINT.value:
        raise UserError(cli.give('--checkpoint=DIR, a workdir or converted weights', __name__))
    files, failures, warnings = prediction.find_files(argv[1:])
    if not files and not failures:
        raise UserError('pass image files, folders of them, or - for standard input.')
    backend.devices()
    task, networks = load_all(CHECKPOINT.value)
    if task.predictor is None:
        raise UserError(f'networks of the task {networks[0].config.task} cannot predict images.')
    predictor = task.predictor(networks, {'top': TOP.value, 'min_score': MIN_SCORE.value})
    folder = prediction.picture_folder(predictor, DRAW.value)
    compilation_cache.use(networks[0].config.compilation_cache)
    for sentence in warnings:
        warn(sentence)
    for failure in failures:
        report(failure)
    for file, answer in prediction.predictions(predictor, files):
        name = file[0]
        if isinstance(answer, Exception):
            failures.append(answer)
            report(answer)
            continue
        if folder is not None:
            prediction.write_picture(predictor, file, answer, folder)
        if JSON.value:
            print(json.dumps({'file': readable(name), **answer.fields}), flush=True)
        else:
            print(readable(name), *(f'  {line}' for line in answer.lines), sep='\n', flush=True)
    return 1 if failures else 0


def report(failure: Exception) -> None:
    """Prints a line on stderr."""
    print(f'error: {readable(str(failure))}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    cli.run(main, takes_files=True)
