"""Charts of block-by-block measurements, with one line per network or quantity."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

HEIGHT = 230  # pixels


def step_axis(**more) -> alt.Axis:
    """The axis of the steps of a network, whose labels are left out where they would touch."""
    return alt.Axis(labelOverlap='greedy', labelSeparation=5, labelAngle=0, **more)


def lines(steps: Sequence[str], values: Mapping[str, np.ndarray], title: str, legend: str, *,
          domain: tuple[float, float] | None = None, scale: str = 'linear',
          count: int | None = None) -> alt.LayerChart:
    """A line for each name, over the steps of a network; of one name alone, without a legend.

    Args:
      steps: names of the steps, in order: T of them.
      values: [T] for each name.
      title: of the vertical axis, with the unit.
      legend: its title, what the names are.
      domain: of the vertical axis.
      scale: of the vertical axis, 'linear' or 'log'.
      count: images, where the values are percentages of them: each gets its 95 % interval.
    """
    rows = [{'step': step, 'name': name, 'value': round(float(value), 5),
             **(dict(zip(('low', 'high'), interval(value, count), strict=True)) if count else {})}
            for name, series in values.items()
            for step, value in zip(steps, series, strict=True)]
    names = list(values)
    vertical = alt.Scale(type=scale, **({} if scale == 'log' else {'zero': False}),
                         **({} if domain is None else {'domain': list(domain)}))
    # Alike for color and shape: otherwise there are two legends.
    named = alt.Scale(domain=names)
    key = alt.Legend(orient='top', columns=2) if len(names) > 1 else None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X('step:O', sort=list(steps), title='step (stage.block)',
                axis=step_axis()),
        y=alt.Y('value:Q', title=title, scale=vertical, axis=alt.Axis(
            tickCount=5, grid=scale != 'log')),
        color=alt.Color('name:N', title=legend, scale=named, legend=key),
        tooltip=[alt.Tooltip('step:O'), alt.Tooltip('name:N', title=legend),
                 alt.Tooltip('value:Q', format='.4')])
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape('name:N', title=legend, scale=named, legend=key))
    layers = [base.mark_line(strokeWidth=2), points]
    if count:
        layers.insert(0, base.mark_rule(opacity=.5).encode(y='low:Q', y2='high:Q'))
    return alt.layer(*layers).properties(width='container', height=HEIGHT)


def interval(percent: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a percentage of so many images, in percent.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    from scipy.stats import binomtest

    found = binomtest(round(percent / 100 * count), count).proportion_ci(method='wilson')
    return round(100 * float(found.low), 3), round(100 * float(found.high), 3)


def table(steps: Sequence[str], columns: Mapping[str, np.ndarray],
          digits: int = 3) -> tuple[list[str], list[list]]:
    """Heads and rows of a table: one row per step."""
    return (['step', *columns],
            [[step, *(round(float(column[i]), digits) for column in columns.values())]
             for i, step in enumerate(steps)])


def ends(steps: Sequence[str], blocks: Sequence[str]) -> list[int]:
    """The positions among the steps of the last block of every stage."""
    last = {name.split('.')[0]: name for name in blocks}
    return [list(steps).index(name) for name in last.values()]
