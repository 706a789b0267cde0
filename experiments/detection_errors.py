"""Draws where a detector is wrong: precision and recall of every class, and kinds of errors.

  python -m experiments.detection_errors --checkpoint=runs/scenes_r20 --output=runs/errors.svg
  python -m experiments.detection_errors --config=configs/bccd_r18.py \\
      --config.data.path=DATA --checkpoint=runs/bccd_r18 --output=errors.png

The curves are those of VOC, at an IoU of 0.5. An error is a detection of a score of at least
--least_score that is wrong: a duplicate, in the wrong place, of the wrong class, or on background;
or an object that was missed. The errors are also printed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import packages, pictures
from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights. Several form an ensemble. The data is that of '
    '--config if given, otherwise that of the first checkpoint.')
OUTPUT = cli.flag(flags.DEFINE_string, 'output', None, 'Picture to write, .svg or .png.')
LEAST_SCORE = cli.flag(
    flags.DEFINE_float, 'least_score', 0.3, 'Least score of a detection that is counted as right '
    'or wrong, from 0 to 1.', lower_bound=0.0, upper_bound=1.0)

POINTS = 200  # of a curve
MOST_CLASSES = 20  # whose curves have a colour and an entry in the legend


def main(_) -> None:
    from experiments import charts, tables
    from resnet_jax import data
    from resnet_jax.output import say
    from resnet_jax.tasks.detection import errors, protocols
    from resnet_jax.tasks.loading import load_all
    from resnet_jax.training.evaluation import data_config
    from resnet_jax.xla import backend, compilation_cache

    packages.check(*packages.CHARTS)
    path = pictures.output(OUTPUT.value, pictures.CHARTS)
    backend.devices()
    _, networks = load_all(CHECKPOINT.value)
    if networks[0].config.task != 'detection':
        raise UserError(f'{CHECKPOINT.value[0]} is not a detector, but was trained for the task '
                        f'{networks[0].config.task}.')
    config = data_config(CONFIG.value, networks, CHECKPOINT.value)
    compilation_cache.use(config.compilation_cache)
    source = data.create_eval_source(config)
    tested = protocols.find(networks, CHECKPOINT.value, source, config, {})
    truth, found = [x.objects for x in tested], [x.found for x in tested]
    counts = errors.breakdown(truth, found, least_score=LEAST_SCORE.value)
    picture = chart(curves_of(truth, found, protocols.class_names(networks, source)), counts,
                    LEAST_SCORE.value)
    charts.save_one(picture, path)
    say(tables.text([['', 'count'], *([kind, f'{count:,}'] for kind, count in counts.items())]))
    say(f'wrote {path}')


def curves_of(truth: Sequence[Any], found: Sequence[Any],
              classes: Sequence[str]) -> list[dict[str, Any]]:
    """Points of the curves: 'class', and 'recall' and 'precision' in percent.

    Args:
      truth, found: see `resnet_jax.tasks.detection.curves.precision_recall`.
      classes: their names; those without objects have no curve.
    """
    from resnet_jax.tasks.detection.curves import precision_recall

    points = []
    for name, (recall, precision) in zip(
            classes, precision_recall(truth, found, len(classes)), strict=True):
        if not len(recall) or np.isnan(recall[0]):
            continue
        chosen = np.unique(np.linspace(0, len(recall) - 1, POINTS).round().astype(int))
        points += [{'class': name, 'recall': 100 * float(recall[i]),
                    'precision': 100 * float(precision[i])} for i in chosen]
    return points


def chart(points: Sequence[Mapping[str, Any]], counts: Mapping[str, int],
          least_score: float) -> Any:
    """The curves to the left, bars of what detections are to the right.

    Args:
      points: see `curves_of`.
      counts: see `resnet_jax.tasks.detection.errors.breakdown`.
      least_score: of the detections that were counted.
    """
    import altair as alt

    scale = alt.Scale(domain=[0, 100])
    lines = alt.Chart(alt.Data(values=list(points))).mark_line(strokeWidth=1.5).encode(
        alt.X('recall:Q', title='recall, %', scale=scale),
        alt.Y('precision:Q', title='precision, %', scale=scale), order='recall:Q')
    classes = list(dict.fromkeys(point['class'] for point in points))
    color = alt.Color('class:N', title='class', sort=classes, scale=alt.Scale(scheme='tableau20'))
    if len(classes) > MOST_CLASSES:  # too many to tell apart
        lines = lines.encode(detail='class:N', opacity=alt.value(0.4))
    else:
        lines = lines.encode(color=color)
    bars = alt.Chart(alt.Data(values=[
        {'kind': kind, 'count': count} for kind, count in counts.items()])).encode(
            alt.X('count:Q', title='detections; of "missed", objects'),
            alt.Y('kind:N', sort=None, title=None), text='count:Q')
    return alt.hconcat(
        lines.properties(width=360, height=320, title='Precision and recall at an IoU of 0.5'),
        (bars.mark_bar() + bars.mark_text(align='left', dx=3)).properties(
            width=260, height=320, title=f'Detections of a score of at least {least_score:g}'))


if __name__ == '__main__':
    cli.run(main, needs=['--checkpoint=DIR', '--output=FILE.svg'])
