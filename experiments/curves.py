"""Learning curves of several networks, in the style of figures 1, 4 and 6."""

import collections
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from experiments import charts
from experiments.claims import estimate
from experiments.ledger import Row
from resnet_jax.training.writers import read_rows

TAGS = {'train/top1_error': 'training', 'eval/top1_error': 'test'}
TICKS = (0, 1, 5, 10, 25, 50, 75, 100)


def points(rows: Iterable[Row], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The curves of runs, averaged over seeds.

    Args:
      rows: of a ledger.
      folder: of the ledger, in which the runs lie.

    Returns:
      'kind' ('plain' or 'residual'), 'depth', 'images' ('training' or 'test'), 'step', and over the
      seeds 'error', 'least', 'greatest' (percent) and 'seeds'.
    """
    found = collections.defaultdict(list)
    for row in rows:
        config = row['config']
        kind = 'plain' if config['model.plain'] else 'residual'
        for line in read_rows(folder / row['run'] / 'metrics.jsonl'):
            for tag, images in TAGS.items():
                if line.get(tag) is not None:
                    key = (kind, config['model.depth'], images, line['step'])
                    found[key].append(line[tag])
    return [{'kind': kind, 'depth': depth, 'images': images, 'step': step,
             'error': estimate(errors).mean, 'least': min(errors), 'greatest': max(errors),
             'seeds': len(errors)}
            for (kind, depth, images, step), errors in sorted(found.items())]


def chart(points: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    """Plain networks to the left, residual ones to the right; the error on a square-root scale."""
    top = max(point['greatest'] for point in points)
    y = alt.Y('error:Q', title='top-1 error, % (square-root scale)',
              scale=alt.Scale(type='sqrt', domain=[0, top]),
              axis=alt.Axis(values=[tick for tick in TICKS if tick <= top]))
    x = alt.X('step:Q', title='step')
    color = alt.Color('depth:O', title='depth', scale=alt.Scale(scheme='viridis', reverse=True),
                      legend=alt.Legend(symbolType='stroke', symbolOpacity=1, symbolStrokeWidth=3))
    base = alt.Chart(alt.Data(values=list(points)))
    lines = base.mark_line().encode(
        x, y, color, strokeDash=alt.StrokeDash(
            'images:N', title='images', sort=['test', 'training'],
            legend=alt.Legend(symbolType='stroke'),
            scale=alt.Scale(domain=['test', 'training'], range=[[1, 0], [4, 3]])),
        strokeWidth=alt.StrokeWidth('images:N', title='images', scale=alt.Scale(
            domain=['test', 'training'], range=[2.5, 1.2])))
    bands = base.mark_area(opacity=0.15).encode(
        x, y=alt.Y('least:Q'), y2='greatest:Q', color=color).transform_filter(
            "datum.images == 'test'")
    panels = [(bands + lines).transform_filter(f"datum.kind == '{kind}'").properties(
        title=f'{kind} networks', width=340, height=320)
        for kind in ('plain', 'residual') if any(point['kind'] == kind for point in points)]
    seeds = max(point['seeds'] for point in points)
    title = {'text': f'Error over the training steps, {charts.over_seeds(seeds)}'}
    if seeds > 1:
        title['subtitle'] = 'bands: from the lowest to the highest test error of the seeds'
    return alt.hconcat(*panels).resolve_scale(y='shared', color='shared').properties(title=title)
