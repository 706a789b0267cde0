"""A report on one offline page: sections of text, charts, pictures and tables."""

import base64
import io
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from experiments.report import theme
from experiments.seeing.section import Section
from resnet_jax.output import write_whole

HERE = pathlib.Path(__file__).parent
PICTURE_WIDTH = 760  # pixels that a picture is enlarged to, at most


def write(path: pathlib.Path, *, title: str, facts: dict[str, str], question: str,
          paragraphs: Sequence[str], highlights: tuple[list[str], list[list]],
          sections: Sequence[Section]) -> None:
    """Writes the page, with everything that it needs inside.

    Args:
      path: of the .html file.
      title: of the page.
      facts: what was looked at, and how, by name.
      question: that the summary answers.
      paragraphs: of the summary.
      highlights: heads and rows of the summary's table.
      sections: in order.
    """
    import vl_convert

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template('page.html').render(
        title=title, facts=facts, question=question, paragraphs=paragraphs,
        highlights=highlights, sections=[_view(section, i) for i, section in enumerate(sections)],
        style=_inline((HERE / 'page.css').read_text()),
        script=_inline((HERE / 'page.js').read_text()),
        library=_inline(vl_convert.javascript_bundle()),
        themes=_json({'light': theme.config(False), 'dark': theme.config(True)}))
    write_whole(path, page)


def write_figures(folder: pathlib.Path, sections: Sequence[Section]) -> None:
    """Writes every chart as SVG and PNG, and every picture as PNG, under its own name."""
    from experiments import charts

    for section in sections:
        for name, chart in section.charts.items():
            charts.save(chart, folder / name, theme.config(False))
        for name, picture in section.pictures.items():
            write_whole(folder / f'{name}.png', png(picture.pixels, _times(picture.pixels)))


def png(pixels: np.ndarray, times: int = 1) -> bytes:
    """uint8 [H, W, 3] as a PNG file, every pixel repeated so often in both directions."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(file, 'PNG', optimize=True)
    return file.getvalue()


def _times(pixels: np.ndarray) -> int:
    return max(1, PICTURE_WIDTH // pixels.shape[1])


def _view(section: Section, number: int) -> dict[str, Any]:
    """What the template needs of a section."""
    charts = []
    for name, chart in section.charts.items():
        spec = chart.to_dict()
        spec.pop('config', None)  # the page's theme has the last word
        charts.append({
            'name': name, 'spec': _json(spec), 'text': section.descriptions[name],
            'wide': spec.get('width') != 'container', 'fluid': spec.get('width') == 'container',
            'steps': spec.get('usermeta', {}).get('steps', [])})
    pictures = [{
        'name': name, 'alt': picture.alt, 'caption': picture.caption,
        'width': picture.pixels.shape[1] * _times(picture.pixels),
        'height': picture.pixels.shape[0] * _times(picture.pixels),
        'data': base64.b64encode(png(picture.pixels)).decode(),
    } for name, picture in section.pictures.items()]
    narrow = [chart for chart in charts if not chart['wide']]
    if len(narrow) % 2:
        narrow[-1]['wide'] = True  # nothing would stand beside it
    return {'id': f'section-{number}', 'title': section.title,
            'paragraphs': section.caption.split('\n\n'), 'reference': section.reference,
            'charts': charts, 'pictures': pictures,
            'tables': [{'name': name.replace('_', ' '), 'heads': heads, 'rows': rows}
                       for name, (heads, rows) in section.tables.items()]}


def _json(value: Any) -> Any:
    """JSON that may stand inside a script element."""
    return _inline(json.dumps(value, separators=(',', ':'), allow_nan=False))


def _inline(text: str) -> Any:
    """Text that may stand inside a script or style element: nothing in it ends the element."""
    return Markup(re.sub(r'</(?=script|style)|<!--', _escaped, text, flags=re.IGNORECASE))


def _escaped(match: re.Match) -> str:
    return match[0].replace('</', r'<\/').replace('<!', r'<\!')
