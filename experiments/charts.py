"""The common style of all charts, and writing them to files."""

import pathlib
from typing import Any

import altair as alt

from resnet_jax.output import write_whole


def over_seeds(most: int, interval: str = '', mean: str = 'mean') -> str:
    """What is drawn of networks with at most that many seeds, for the title of a chart.

    Args:
      most: seeds of the network that has most.
      interval: what is drawn beside the mean where there are several.
      mean: which one it is.
    """
    return f'{mean} over the seeds{interval}' if most > 1 else 'one seed'


def depth_and_kind() -> tuple[alt.Color, alt.StrokeDash]:
    """How lines tell networks apart, by 'depth' and 'kind' ('plain' or 'residual')."""
    kind = alt.StrokeDash('kind:N', title='network', legend=alt.Legend(
        symbolType='stroke', symbolStrokeColor='gray', symbolStrokeWidth=2),
        scale=alt.Scale(domain=['residual', 'plain'], range=[[1, 0], [4, 3]]))
    return (alt.Color('depth:O', title='depth', scale=alt.Scale(scheme='viridis', reverse=True)),
            kind)


def save(chart: alt.TopLevelMixin, path: pathlib.Path,
         config: dict[str, Any] | None = None) -> None:
    """Writes a chart as path.svg and path.png, without a browser or a network.

    Args:
      chart: any Altair chart.
      path: of the files, without a suffix.
      config: of Vega-Lite, its colours and fonts; the chart's own has precedence.
    """
    for suffix in ('.svg', '.png'):
        save_one(chart, path.with_suffix(suffix), config)


def save_one(chart: alt.TopLevelMixin, path: pathlib.Path,
             config: dict[str, Any] | None = None) -> None:
    """Writes a chart as a single file.

    Args:
      chart, config: see `save`.
      path: ends in .svg or .png.
    """
    import vl_convert

    spec = chart.to_dict()
    write_whole(path, vl_convert.vegalite_to_svg(spec, config=config) if path.suffix == '.svg'
                else vl_convert.vegalite_to_png(spec, config=config, scale=2))
