"""The similarity of the representations of any two steps: linear CKA (Kornblith et al., 2019)."""

from collections.abc import Mapping

import altair as alt
import numpy as np

from experiments.seeing import curves, geometry
from experiments.seeing.representation import Representation
from experiments.seeing.section import Section

REFERENCE = ('S. Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, '
             'section 3; M. Raghu et al., "SVCCA", 2017.')
SIDE = 330  # pixels of the map of one network


def chance(network: Representation) -> float:
    """The CKA with the pixels that the last step would have if the images were mixed up.

    With N images and many features it is not zero.
    """
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(network.labels))
    return geometry.cka(network.grams[0], network.grams[-1][np.ix_(order, order)])


def section(networks: Mapping[str, Representation]) -> Section:
    """Section of the report. The keys are the networks' names."""
    steps = next(iter(networks.values())).steps
    maps = alt.hconcat(*(_heatmap(name if len(networks) > 1 else '', network)
                         for name, network in networks.items()))
    pixels = {name: network.cka[0] for name, network in networks.items()}
    level = {name: chance(network) for name, network in networks.items()}
    near = ' '.join(_with_pixels(name, network, level[name])
                    for name, network in networks.items())
    return Section(
        'Does the representation stay near the input space?',
        'CKA compares the inner products of all pairs of images in two representations: 1 means '
        'equal but for a rotation and a scale. The maps show every pair of steps; the curve is the '
        'first row of each map, the likeness to the pixels themselves.',
        REFERENCE,
        {'cka_with_pixels': curves.lines(steps, pixels, 'CKA with the pixels', 'network',
                                         domain=(0, 1)),
         'cka': maps},
        {'cka_with_pixels': f'The likeness to the pixels. {near}',
         'cka': 'The CKA of every pair of steps. ' + ' '.join(
             _from_step_to_step(name, network) for name, network in networks.items())},
        numbers={
            **{f'cka_pixels_last_{name}': float(series[-1]) for name, series in pixels.items()},
            **{f'cka_pixels_shuffled_{name}': value for name, value in level.items()}},
        tables={'cka_with_pixels': curves.table(steps, pixels), **{
            f'cka_{name}': curves.table(steps, dict(zip(steps, network.cka, strict=True)), 2)
            for name, network in networks.items()}})


def _heatmap(name: str, network: Representation) -> alt.Chart:
    steps = network.steps
    rows = [{'a': a, 'b': b, 'cka': round(float(network.cka[i, j]), 3)}
            for i, a in enumerate(steps) for j, b in enumerate(steps)]
    axis = curves.step_axis(grid=False)
    return alt.Chart(alt.Data(values=rows), title=name).mark_rect().encode(
        x=alt.X('a:O', sort=list(steps), title='step (stage.block)', axis=axis),
        y=alt.Y('b:O', sort=list(steps), title='step (stage.block)', axis=axis),
        color=alt.Color('cka:Q', title='CKA', scale=alt.Scale(scheme='viridis', domain=[0, 1])),
        tooltip=['a:O', 'b:O', alt.Tooltip('cka:Q', format='.3f')],
    ).properties(width=SIDE, height=SIDE)


def _with_pixels(name: str, network: Representation, level: float) -> str:
    with_pixels = network.cka[0]
    stages = ', '.join(f'{with_pixels[i]:.2f} after stage {network.steps[i].split(".")[0]}'
                       for i in curves.ends(network.steps, network.blocks))
    return (f'In the {name} network it is {with_pixels[1]:.2f} after the stem, {stages}; images '
            f'mixed up at random would give {level:.2f}.')


def _from_step_to_step(name: str, network: Representation) -> str:
    following = np.diag(network.cka, 1)
    lowest = int(following.argmin())
    return (f'In the {name} network two steps in a row have at least {following[lowest]:.2f} '
            f'({network.steps[lowest]} and {network.steps[lowest + 1]}), and the stem and the last '
            f'block {network.cka[1, -1]:.2f}.')
