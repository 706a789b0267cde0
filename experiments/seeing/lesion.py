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
LONG = 8  # characters: longer names of bars are slanted
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
    whole = {name: lesions.whole for name, lesions in networks.items()}
    charts = {'deletion': _bars(
        {name: dict(zip(x.blocks, x.deleted, strict=True)) for name, x in networks.items()},
        whole, 'deleted block (stage.block)', 'top-1 error without it (%)')}
    described = {'deletion': ' '.join(
        _deletion(name, lesions) for name, lesions in networks.items())}
    if first.swapped:
        charts['swapping'] = _bars(
            {name: {f'{x.blocks[i]} and {x.blocks[j]}': error
                    for (i, j), error in x.swapped.items()} for name, x in networks.items()},
            whole, 'blocks that changed places (stage.block)', 'top-1 error (%)')
        described['swapping'] = ' '.join(
            _swapping(name, lesions) for name, lesions in networks.items())
    return Section(
        'Deleting and swapping blocks',
        'If every block only refines what it is given, the others should cope without it, or with '
        'it in another place. A deleted block passes on what it carries; no weights are '
        'retrained. Blocks that change the shape are deleted too, but are not swapped. The line '
        'is the error of the network as it is.',
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


def _bars(errors: Mapping[str, Mapping[str, float]], whole: Mapping[str, float], what: str,
          title: str) -> alt.LayerChart:
    """A bar for every change to every network, and a line for the network as it is.

    Args:
      errors: by network and change, in percent.
      whole: the error of each network, in percent.
      what, title: of the axes.
    """
    names = list(errors)
    rows = [{'change': change, 'network': name, 'error': round(float(error), 3)}
            for name, changes in errors.items() for change, error in changes.items()]
    legend = alt.Legend(orient='top') if len(names) > 1 else None
    changes = list(next(iter(errors.values())))
    color = alt.Color('network:N', sort=names, legend=legend)
    bars = alt.Chart(alt.Data(values=rows)).mark_bar().encode(
        x=alt.X('change:O', sort=changes, title=what, axis=alt.Axis(
            labelAngle=0 if max(map(len, changes)) < LONG else -45, labelOverlap='greedy',
            labelSeparation=4)),
        xOffset=alt.XOffset('network:N', sort=names),
        y=alt.Y('error:Q', title=title), color=color,
        tooltip=['change:O', 'network:N', alt.Tooltip('error:Q', format='.2f')])
    lines = alt.Chart(alt.Data(values=[
        {'network': name, 'error': round(error, 3)} for name, error in whole.items()])).mark_rule(
            strokeDash=[4, 3]).encode(y='error:Q', color=color)
    return (bars + lines).properties(width='container', height=curves.HEIGHT)


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
