"""Line charts over a common axis."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

WIDTH, HEIGHT = 640, 240  # pixels


def lines(x: Sequence[float], curves: Mapping[str, np.ndarray], *, x_title: str, y_title: str,
          series_title: str, scale: alt.Scale) -> alt.Chart:
    """One line with points for every curve, told apart by colour and by shape.

    Args:
      x: positions, [points].
      curves: name to values, [points].
      x_title, y_title, series_title: of the axes and the legend.
      scale: of the values.
    """
    rows = [{'x': round(float(at), 4), 'y': float(f'{value:.4g}'), 'series': name}
            for name, curve in curves.items() for at, value in zip(x, curve, strict=True)]
    # One domain, so that colour and shape share a legend.
    series = dict(title=series_title, scale=alt.Scale(domain=list(curves)),
                  legend=alt.Legend(orient='bottom'))
    return alt.Chart(alt.Data(values=rows), width=WIDTH, height=HEIGHT).mark_line(
        point=True).encode(
            x=alt.X('x:Q', title=x_title), y=alt.Y('y:Q', title=y_title, scale=scale),
            color=alt.Color('series:N', **series), shape=alt.Shape('series:N', **series))
