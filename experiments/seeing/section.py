"""A section of the report: a title, text, charts, pictures and numbers."""

import dataclasses

import altair as alt
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is not a chart.

    Attributes:
      pixels: uint8 [H, W, 3], at the size at which it is shown or smaller: it is enlarged without
        smoothing.
      alt: what a reader who cannot see it should know; never empty.
      caption: stands under it; may be empty.
    """

    pixels: np.ndarray
    alt: str
    caption: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A section of the report. The names of charts, pictures and numbers are file names too, so
    they are lower-case with underscores, and differ from each other within a report.

    Attributes:
      title: the heading, in words.
      caption: what is seen in this run, in numbers; paragraphs are separated by an empty line. It
        is plain text, not HTML.
      reference: where the method comes from: authors, title, year.
      charts: Altair charts, without colours of their own for text, axes or background: these come
        from the page's theme, light or dark. Width 'container' or at most 760 pixels.
      descriptions: of each chart, the sentence that a screen reader reads in its place.
      pictures: by name.
      numbers: what goes into numbers.json.
      tables: of the numbers behind the charts: name to (column heads, rows).
    """

    title: str
    caption: str
    reference: str = ''
    charts: dict[str, alt.TopLevelMixin] = dataclasses.field(default_factory=dict)
    descriptions: dict[str, str] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Picture] = dataclasses.field(default_factory=dict)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list]]] = dataclasses.field(default_factory=dict)
