"""Draws what `compile --sweep` predicts: images per second and efficiency against devices.

  python -m experiments.scaling --output=scaling.svg r50.json r152.json

Each file is the output of `python -m resnet_jax.compile` with --sweep and --json; its name is that
of the curve. Solid lines: communication overlaps with nothing; the band ends where it overlaps
with everything. The shape of a point is what bounds it.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import packages, pictures
from resnet_jax import cli
from resnet_jax.errors import UserError

OUTPUT = cli.flag(flags.DEFINE_string, 'output', None, 'Chart to write, .svg or .png.')


def main(arguments: Sequence[str]) -> None:
    packages.check(*packages.CHARTS)
    from experiments import charts

    path = pictures.output(OUTPUT.value, pictures.CHARTS)
    if not arguments[1:]:
        raise UserError('no predictions; name the JSON files behind the flags.')
    charts.save_one(chart([point for file in arguments[1:] for point in read(pathlib.Path(file))]),
                    path)
    print(path)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The points of a file, with its name as 'run'.

    Raises:
      UserError: it is not the output of `compile --sweep --json`.
    """
    try:
        points = json.loads(path.read_text())['points']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not the output of `compile --sweep --json`: {error!r}.') from (
            error)
    return [{'run': path.stem, **point} for point in points]


def chart(points: Sequence[dict[str, Any]]) -> Any:
    """Weak and strong scaling side by side, images per second above efficiency."""
    import altair as alt

    columns = []
    for scaling in ('weak', 'strong'):
        rows = [point for point in points if point['scaling'] == scaling]
        base = alt.Chart(alt.Data(values=rows), width=260, height=180).encode(
            alt.X('devices:Q', title='devices', scale=alt.Scale(type='log', base=2)),
            alt.Color('run:N', title=None))
        marks = base.mark_point(filled=True, size=60).encode(alt.Shape('bound:N', title='bound by'))
        columns.append(alt.vconcat(*(
            alt.layer(*layers, base.mark_line().encode(y), marks.encode(y)) for y, layers in (
                (alt.Y('images_per_second:Q', title='images per second',
                       axis=alt.Axis(format='~s', grid=False, tickCount=4),
                       scale=alt.Scale(type='log')), ()),
                (alt.Y('efficiency:Q', title='efficiency', axis=alt.Axis(format='%'),
                       scale=alt.Scale(zero=False)),
                 [base.mark_area(opacity=0.2).encode(
                     alt.Y('efficiency:Q'), alt.Y2('efficiency_overlapped:Q'))]))),
            title=f'{scaling} scaling'))
    return alt.hconcat(*columns)


if __name__ == '__main__':
    cli.run(main, needs=['--output=FILE.svg'], takes_files=True)
