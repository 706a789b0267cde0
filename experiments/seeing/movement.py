"""How far each block moves the images: lengths and angles of what it adds.

The ratio of the branch and what is carried is the response of section 4.2 and figure 7, seen
relative to the signal that it is added to.
"""

from collections.abc import Mapping

import numpy as np

from experiments.seeing import curves
from experiments.seeing.representation import Representation
from experiments.seeing.section import Section

REFERENCE = ('K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2 and '
             'figure 7; S. Jastrzębski et al., "Residual Connections Encourage Iterative '
             'Inference", 2018.')


def section(networks: Mapping[str, Representation]) -> Section:
    """Section of the report. The keys are the networks' names."""
    steps = next(iter(networks.values())).blocks
    quantities = {'branch_over_carried': 'ratio', 'output_cosine': 'output_cosine',
                  'branch_cosine': 'branch_cosine'}
    means = {key: {name: getattr(network, field).mean(1) for name, network in networks.items()}
             for key, field in quantities.items()}
    titles = {'branch_over_carried': 'norm of branch / norm of carried',
              'output_cosine': 'cosine of output and carried',
              'branch_cosine': 'cosine of branch and carried'}
    charts = {f'movement_{key}': curves.lines(steps, means[key], title, 'network')
              for key, title in titles.items()}
    sentences = [_sentence(name, network) for name, network in networks.items()]
    return Section(
        'How far each block moves the images',
        'A block adds its branch to what its shortcut carries over from its input. Short branches '
        'that point the same way for every image change little; long ones that turn the signal '
        'change much.' + (' A plain block carries nothing; its input, in the shape of its output, '
                          'stands in for that.' if len(networks) > 1 else '')
        + '\n\n' + ' '.join(sentences),
        REFERENCE, charts,
        {name: f'Line chart, one point a block: {titles[name.removeprefix("movement_")]}. '
               + ' '.join(f'{key}: from {series[0]:.2f} in the first block to {series[-1]:.2f} in '
                          'the last.' for key, series in means[
                              name.removeprefix('movement_')].items())
         for name in charts},
        numbers={f'{quantity}_{name}_median': float(np.median(getattr(network, field)))
                 for quantity, field in quantities.items()
                 for name, network in networks.items()},
        tables={'movement': curves.table(steps, {
            f'{titles[key]}, {name}': series for key, by_name in means.items()
            for name, series in by_name.items()})})


def _sentence(name: str, network: Representation) -> str:
    ratio, cosine = network.ratio.mean(1), network.output_cosine.mean(1)
    largest, smallest = int(ratio.argmax()), int(ratio.argmin())
    return (f'In the {name} network the branch is {ratio.min():.2f} (block '
            f'{network.blocks[smallest]}) to {ratio.max():.2f} (block {network.blocks[largest]}) '
            f'times as long as what is carried, on average over the images, and the output keeps '
            f'a cosine of {cosine.min():.2f} to {cosine.max():.2f} with it. Over the depth the '
            f'ratio {_trend(ratio)}.')


def _trend(series: np.ndarray) -> str:
    """'falls', 'rises' or neither, by the rank correlation with the depth."""
    from scipy.stats import spearmanr

    if len(series) < 3:
        return 'has too few blocks to show a trend'
    correlation = float(spearmanr(np.arange(len(series)), series).statistic)
    verb = 'rises' if correlation > .5 else 'falls' if correlation < -.5 else 'shows no trend'
    return f'{verb} (rank correlation {correlation:.2f})'
