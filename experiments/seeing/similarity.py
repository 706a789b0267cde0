"""How alike the representations of any two steps are: linear CKA (Kornblith et al., 2019)."""

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
    maps = alt.hconcat(*(_heatmap(name, network) for name, network in networks.items()))
    pixels = {name: network.cka[0] for name, network in networks.items()}
    level = {name: chance(network) for name, network in networks.items()}
    sentences = [_sentence(name, network, level[name]) for name, network in networks.items()]
    return Section(
        'Does the representation stay near the input space?',
        'CKA compares the inner products of all pairs of images in two representations: 1 means '
        'equal but for a rotation and a scale. The maps show every pair of steps, the curve the '
        'first row of each map: the likeness to the pixels themselves.\n\n' + ' '.join(sentences),
        REFERENCE,
        {'cka': maps,
         'cka_with_pixels': curves.lines(steps, pixels, 'CKA with the pixels', 'network',
                                         domain=(0, 1))},
        {'cka': 'Heat map of the CKA of every pair of steps. ' + ' '.join(sentences),
         'cka_with_pixels': 'Line chart of the CKA with the pixels. ' + ' '.join(sentences)},
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
    axis = alt.Axis(labelOverlap='greedy', labelAngle=0, grid=False)
    return alt.Chart(alt.Data(values=rows), title=name).mark_rect().encode(
        x=alt.X('a:O', sort=list(steps), title='step (stage.block)', axis=axis),
        y=alt.Y('b:O', sort=list(steps), title='step (stage.block)', axis=axis),
        color=alt.Color('cka:Q', title='CKA', scale=alt.Scale(scheme='viridis', domain=[0, 1])),
        tooltip=['a:O', 'b:O', alt.Tooltip('cka:Q', format='.3f')],
    ).properties(width=SIDE, height=SIDE)


def _sentence(name: str, network: Representation, level: float) -> str:
    with_pixels = network.cka[0]
    stages = ', '.join(f'{with_pixels[i]:.2f} after stage {network.steps[i].split(".")[0]}'
                       for i in curves.ends(network.steps, network.blocks))
    neighbours = [network.cka[i, i + 1] for i in range(1, len(network.steps) - 1)]
    return (f'In the {name} network the CKA with the pixels is {with_pixels[1]:.2f} after the stem, '
            f'{stages}; images mixed up at random would give {level:.2f}. One block to the next '
            f'it is at least {min(neighbours):.2f}.')
