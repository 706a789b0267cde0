"""The error after deleting a block or swapping two.

A. Veit, M. Wilber and S. Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow
Networks", 2016, sections 4.1 and 4.3.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import altair as alt
import numpy as np

from experiments.seeing import blocks as blocks_lib
from experiments.seeing import curves
from experiments.seeing.images import Images
from experiments.seeing.section import Section
from resnet_jax.tasks.classification.classifier import Classifier

REFERENCE = ('A. Veit, M. Wilber and S. Belongie, "Residual Networks Behave Like Ensembles of '
             'Relatively Shallow Networks", 2016, sections 4.1 and 4.3.')
MOST_PAIRS = 120  # to swap at most; if there are more, this many are drawn at random


@dataclasses.dataclass(frozen=True, eq=False)
class Lesions:
    """Top-1 errors in percent on held-out images.

    Attributes:
      blocks: the names of the L blocks.
      whole: of the network as it is.
      deleted: without each block, float64 [L]; only what the block carries is passed on.
      swapped: by pair of blocks (i < j, positions among the L) of one stage and shape, which
        change places.
    """

    blocks: tuple[str, ...]
    whole: float
    deleted: np.ndarray
    swapped: dict[tuple[int, int], float]


def compute(network: Classifier, images: Images,
            progress: Callable[[], object] = lambda: None) -> Lesions:
    """Deletes each block, and swaps blocks of one stage.

    Args:
      network: residual, or a plain twin.
      images: held out.
      progress: called after every deletion and every swap.
    """
    blocks = blocks_lib.blocks(network)
    inputs = [network.features(images.pixels, 'stem')]
    for block in blocks:
        inputs.append(blocks_lib.forward(block, inputs[-1]))

    def error_after(x, rest):
        return blocks_lib.error(network, blocks_lib.run_all(rest, x), images.labels)

    deleted = []
    for i, block in enumerate(blocks):
        deleted.append(error_after(blocks_lib.delete(block, inputs[i]), blocks[i + 1:]))
        progress()
    swapped = {}
    for i, j in pairs(blocks):
        order = [blocks[j], *blocks[i + 1:j], blocks[i], *blocks[j + 1:]]
        swapped[i, j] = error_after(inputs[i], order)
        progress()
    return Lesions(tuple(block.name for block in blocks), error_after(inputs[-1], []),
                   np.array(deleted), swapped)


def pairs(blocks: Sequence[blocks_lib.Block]) -> list[tuple[int, int]]:
    """Pairs of blocks of one stage that keep the shape; at most 120, drawn at random."""
    found = [(i, j) for i, j in itertools.combinations(range(len(blocks)), 2)
             if blocks[i].stage == blocks[j].stage
             and blocks[i].keeps_shape and blocks[j].keeps_shape]
    if len(found) > MOST_PAIRS:
        rng = np.random.Generator(np.random.PCG64(0))
        found = [found[k] for k in sorted(rng.choice(len(found), MOST_PAIRS, replace=False))]
    return found


def section(networks: Mapping[str, Lesions]) -> Section:
    """Section of the report. The keys are the networks' names."""
    first = next(iter(networks.values()))
    names, count = list(networks), len(first.blocks)
    rows = [{'block': block, 'network': name, 'error': round(float(value), 3)}
            for name, lesions in networks.items()
            for block, value in zip(lesions.blocks, lesions.deleted, strict=True)]
    charts = {'deletion': alt.Chart(alt.Data(values=rows)).mark_bar().encode(
        x=alt.X('block:O', sort=list(first.blocks), title='deleted block (stage.block)',
                axis=alt.Axis(labelAngle=0, labelOverlap='greedy')),
        xOffset=alt.XOffset('network:N', sort=names),
        y=alt.Y('error:Q', title='top-1 error without it (%)'),
        color=alt.Color('network:N', sort=names, legend=alt.Legend(orient='top')),
        tooltip=['block:O', 'network:N', alt.Tooltip('error:Q', format='.2f')],
    ).properties(width='container', height=curves.HEIGHT)}
    described = {'deletion': ' '.join(
        _deletion(name, lesions) for name, lesions in networks.items())}
    if first.swapped:
        charts['swapping'] = alt.hconcat(*(_swaps(name, x) for name, x in networks.items()))
        described['swapping'] = ' '.join(
            _swapping(name, lesions) for name, lesions in networks.items())
    return Section(
        'Deleting and swapping blocks',
        'If every block only refines what it is given, the others should cope without it, or with '
        'it in another place. A deleted block passes on what it carries; no weights are '
        'retrained. Blocks that change the shape are deleted too, but are not swapped.',
        REFERENCE, charts, described,
        numbers={f'{key}_{name}': value for name, lesions in networks.items() for key, value in {
            'error': lesions.whole,
            'error_deleted_median': float(np.median(lesions.deleted)),
            'error_deleted_worst': float(lesions.deleted.max()),
            **({'error_swapped_median': float(np.median(list(lesions.swapped.values())))}
               if lesions.swapped else {})}.items()},
        tables={
            'deletion': (['block', *(f'error without it, {name} (%)' for name in names)],
                         [[first.blocks[i], *(round(float(x.deleted[i]), 2)
                                              for x in networks.values())]
                          for i in range(count)]),
            'swapping': (['blocks', *(f'error, {name} (%)' for name in names)],
                         [[f'{first.blocks[i]} and {first.blocks[j]}',
                           *(round(x.swapped[i, j], 2) for x in networks.values())]
                          for i, j in first.swapped])})


def _swaps(name: str, lesions: Lesions) -> alt.Chart:
    rows = [{'a': lesions.blocks[i], 'b': lesions.blocks[j], 'error': round(value, 3)}
            for (i, j), value in lesions.swapped.items()]
    axis = alt.Axis(labelAngle=0, labelOverlap='greedy', grid=False)
    order = list(lesions.blocks)
    return alt.Chart(alt.Data(values=rows), title=name).mark_rect().encode(
        x=alt.X('a:O', sort=order, title='block (stage.block)', axis=axis),
        y=alt.Y('b:O', sort=order, title='swapped with', axis=axis),
        color=alt.Color('error:Q', title='error (%)', scale=alt.Scale(
            scheme='viridis', domain=[0, 100])),
        tooltip=['a:O', 'b:O', alt.Tooltip('error:Q', format='.2f')],
    ).properties(width=300, height=260)


def _deletion(name: str, lesions: Lesions) -> str:
    worst = int(lesions.deleted.argmax())
    return (f'Without one block the error of the {name} network goes from {lesions.whole:.2f} % to '
            f'{np.median(lesions.deleted):.2f} % without the median block, and to '
            f'{lesions.deleted[worst]:.2f} % without block {lesions.blocks[worst]}.')


def _swapping(name: str, lesions: Lesions) -> str:
    if not lesions.swapped:
        return f'No two blocks of the {name} network can be swapped.'
    values = list(lesions.swapped.values())
    (i, j), worst = max(lesions.swapped.items(), key=lambda item: item[1])
    return (f'With two blocks of the {name} network swapped, one pair of {len(values)} at a time, '
            f'the median error is {np.median(values):.2f} %, and the highest {worst:.2f} % '
            f'(blocks {lesions.blocks[i]} and {lesions.blocks[j]}).')
