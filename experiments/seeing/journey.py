"""A chart that follows the same images through a network, step by step."""

import base64
import io
from collections.abc import Mapping

import altair as alt
import numpy as np

from experiments.seeing.curves import ends
from experiments.seeing.images import Images
from experiments.seeing.projection import Projections
from experiments.seeing.representation import Representation
from experiments.seeing.section import Section

REFERENCE = ('P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966; '
             'L. McInnes, J. Healy and J. Melville, "UMAP", 2018.')
THUMBNAIL = 48  # pixels per side, at most
SIDE, STILL = 380, 180  # pixels of a panel that moves, and of one that does not
# One for each of the ten classes, beside its colour and its name.
SHAPES = ('circle', 'square', 'cross', 'diamond', 'triangle-up', 'triangle-down', 'triangle-left',
          'triangle-right', 'M0,-1L.3,-.3L1,0L.3,.3L0,1L-.3,.3L-1,0L-.3,-.3Z',
          'M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z')


def section(images: Images, networks: Mapping[str, Representation],
            projections: Mapping[str, Projections]) -> Section:
    """Section of the report. The keys are the networks' names.

    The chart has a parameter `step`, from 0 to T - 1, that a slider sets; between two whole numbers
    the points are on their way. Its usermeta names the steps.
    """
    steps = next(iter(networks.values())).steps
    described = ' '.join(_sentence(name, networks[name], projections[name]) for name in networks)
    return Section(
        'The same images, carried through the network',
        f'{len(images.labels)} held-out images as points: first the pixels, then the stem, then '
        'every block. Left, the two principal components of each step, turned to lie as near to '
        'the step before as a rotation can bring them; right, UMAP, started from the step before. '
        'Every step is scaled to the same mean distance from the centre. The names stand above '
        'the centres of the classes; point at a point to see its image.',
        REFERENCE,
        {'journey': _moving(images, steps, projections), 'journey_stills': _stills(
            images, networks, projections)},
        {'journey': described,
         'journey_stills': 'The principal components of the pixels, behind the stem and where a '
                           'stage ends. ' + ' '.join(
                               _still(name, networks[name], projections[name])
                               for name in networks)},
        numbers={f'pca_variance_{name}_{end}': float(points.variance[i])
                 for name, points in projections.items() for end, i in (('pixels', 0),
                                                                        ('last', -1))},
        tables={'journey': (['step', *(f'share of variance in two components, {name}'
                                       for name in projections)],
                            [[step, *(round(float(points.variance[i]), 3)
                                      for points in projections.values())]
                             for i, step in enumerate(steps)])})


def _moving(images: Images, steps, projections: Mapping[str, Projections]) -> alt.TopLevelMixin:
    panels = {(name, method): getattr(points, field)
              for name, points in projections.items()
              for method, field in (('principal components', 'pca'), ('UMAP', 'umap'))}
    rows = [{'class': name, 'image': picture} for name, picture in zip(
        _names(images), map(thumbnail, images.pixels), strict=True)]
    for number, points in enumerate(panels.values()):
        for row, path in zip(rows, np.round(points, 3).transpose(1, 2, 0).tolist(), strict=True):
            row[f'x{number}'], row[f'y{number}'] = path
    charts = [_panel(number, method if len(projections) == 1 else f'{name}: {method}',
                     _reach(points), images)
              for number, ((name, method), points) in enumerate(panels.items())]
    lines = [alt.hconcat(*charts[i:i + 2], spacing=14) for i in range(0, len(charts), 2)]
    return alt.vconcat(*lines, data=alt.Data(values=rows), spacing=14,
                       usermeta={'steps': list(steps)}).add_params(
        alt.param(name='step', value=0)).resolve_scale(color='shared', shape='shared')


def _panel(number: int, title: str, reach: float, images: Images) -> alt.LayerChart:
    def between(axis):
        path = f'datum.{axis}{number}'
        return f'{path}[floor(step)] * (1 - step % 1) + {path}[ceil(step)] * (step % 1)'

    domain = alt.Scale(domain=[-reach, reach], nice=False)
    base = alt.Chart(title=title).transform_calculate(x=between('x'), y=between('y'))
    points = base.mark_point(filled=True, size=46, opacity=.8, strokeWidth=0).encode(
        x=alt.X('x:Q', scale=domain, axis=None), y=alt.Y('y:Q', scale=domain, axis=None),
        tooltip=['class:N', 'image:N'], **_classes(images))
    centres = base.transform_aggregate(x='mean(x)', y='mean(y)', groupby=['class']).encode(
        x=alt.X('x:Q', scale=domain, axis=None), y=alt.Y('y:Q', scale=domain, axis=None),
        text='class:N')
    names = [centres.mark_text(style=style, dy=-17, tooltip=None) for style in ('halo', 'name')]
    return alt.layer(points, *names).properties(width=SIDE, height=SIDE)


def _stills(images: Images, networks, projections) -> alt.TopLevelMixin:
    """Principal components of the pixels, the stem and the ends of the stages."""
    first = next(iter(networks.values()))
    shown = [0, 1, *ends(first.steps, first.blocks)]
    names = _names(images)
    rows = []
    for name, points in projections.items():
        panels = []
        for i in shown:
            title = first.steps[i] if len(projections) == 1 else f'{name}: {first.steps[i]}'
            panels.append(_still_panel(title, names, points.pca[i], images))
        rows.append(alt.hconcat(*panels, spacing=10))
    return alt.vconcat(*rows, spacing=10).resolve_scale(color='shared', shape='shared')


def _still_panel(title: str, names: list[str], points: np.ndarray, images: Images) -> alt.Chart:
    """The points of one step, as large as the panel allows: the scale has no meaning."""
    reach = _reach(points)
    domain = alt.Scale(domain=[-reach, reach], nice=False)
    rows = [{'class': label, 'x': round(float(x), 3), 'y': round(float(y), 3)}
            for label, (x, y) in zip(names, points, strict=True)]
    return alt.Chart(alt.Data(values=rows), title=title).mark_point(
        filled=True, size=24, opacity=.8, strokeWidth=0).encode(
        x=alt.X('x:Q', scale=domain, axis=None), y=alt.Y('y:Q', scale=domain, axis=None),
        **_classes(images)).properties(width=STILL, height=STILL)


def _classes(images: Images) -> dict:
    present = list(dict.fromkeys(images.classes[i] for i in sorted(set(images.labels.tolist()))))
    present = [_short(name) for name in present]
    return {'color': alt.Color('class:N', title='class', scale=alt.Scale(domain=present)),
            'shape': alt.Shape('class:N', title='class', scale=alt.Scale(
                domain=present, range=list(SHAPES[:len(present)])))}


def _names(images: Images) -> list[str]:
    return [_short(images.classes[i]) for i in images.labels]


def _short(name: str) -> str:
    return name.split(',')[0]


def _reach(points: np.ndarray) -> float:
    return 1.06 * float(np.abs(points).max())


def thumbnail(pixels: np.ndarray) -> str:
    """uint8 [H, W, 1 or 3] -> a data URI of at most 48 x 48 pixels."""
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, 'WEBP', lossless=small and pixels.shape[-1] == 1, quality=80)
    return 'data:image/webp;base64,' + base64.b64encode(file.getvalue()).decode()


def _sentence(name: str, network: Representation, points: Projections) -> str:
    crowd = [100 * _same_class(track, network.labels) for track in (
        points.pca[0], points.pca[-1], points.umap[0], points.umap[-1])]
    return (f'In the {name} network the two principal components hold '
            f'{100 * points.variance[0]:.0f} % of the variance of the pixels and '
            f'{100 * points.variance[-1]:.0f} % after the last block. The nearest point in the '
            f'picture has the same class for {crowd[0]:.0f} % of the images at first and '
            f'{crowd[1]:.0f} % at last by principal components, and for {crowd[2]:.0f} % and '
            f'{crowd[3]:.0f} % by UMAP.')


def _still(name: str, network: Representation, points: Projections) -> str:
    parts = [f'{100 * _same_class(points.pca[i], network.labels):.0f} % ({network.steps[i]})'
             for i in [0, 1, *ends(network.steps, network.blocks)]]
    return (f'In the {name} network the nearest point has the same class for '
            f'{", ".join(parts)} of the images.')


def _same_class(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of the points [N, 2] whose nearest point has their class."""
    distance = np.square(points[:, None] - points).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return float(np.mean(labels[distance.argmin(1)] == labels))
