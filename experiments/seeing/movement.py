"""How far each block moves the representation: lengths and angles of what it adds.

The ratio of the branch to what is carried is the response of section 4.2 and figure 7, relative to
the signal it is added to.
"""

from collections.abc import Mapping, Sequence

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
    return Section(
        'How far each block moves the images',
        'A block adds its branch to what its shortcut carries over from its input. Short branches '
        'that point the same way for every image change little; long ones that turn the signal '
        'change much. All values are averages over the images.'
        + (' A plain block carries nothing; its input, in the shape of its output, stands in for '
           'that.' if 'plain' in networks else ''),
        REFERENCE, charts,
        {f'movement_{key}': ' '.join(
            f'{titles[key].capitalize()} in the {name} network: {_told(series, steps)}'
            for name, series in by_name.items()) for key, by_name in means.items()},
        numbers={f'{quantity}_{name}_median': float(np.median(getattr(network, field)))
                 for quantity, field in quantities.items()
                 for name, network in networks.items()},
        tables={'movement': curves.table(steps, {
            f'{titles[key]}, {name}': series for key, by_name in means.items()
            for name, series in by_name.items()})})


def _told(series: np.ndarray, steps: Sequence[str]) -> str:
    lowest, highest = int(series.argmin()), int(series.argmax())
    return (f'{series[lowest]:z.2f} (block {steps[lowest]}) to {series[highest]:z.2f} (block '
            f'{steps[highest]}), with a median of {np.median(series):z.2f}; over the depth it '
            f'{_trend(series)}.')


def _trend(series: np.ndarray) -> str:
    """'falls', 'rises' or neither, by the rank correlation with the depth."""
    from scipy.stats import spearmanr

    if len(series) < 3:
        return 'has too few blocks to show a trend'
    correlation = float(spearmanr(np.arange(len(series)), series).statistic)
    verb = 'rises' if correlation > .5 else 'falls' if correlation < -.5 else 'shows no trend'
    return f'{verb} (rank correlation {correlation:z.2f})'
