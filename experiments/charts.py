"""How every chart of the experiments looks, and how it is written."""

import pathlib

import altair as alt

from resnet_jax.writers import write_whole


def save(chart: alt.TopLevelMixin, path: pathlib.Path) -> None:
    """Writes a chart as path.svg and path.png, without a browser or a network.

    Args:
      chart: any Altair chart.
      path: of the files, without a suffix.
    """
    import vl_convert

    spec = chart.to_dict()
    write_whole(path.with_suffix('.svg'), vl_convert.vegalite_to_svg(spec))
    write_whole(path.with_suffix('.png'), vl_convert.vegalite_to_png(spec, scale=2))
