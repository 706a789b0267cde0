"""How separable the classes are after every step: probe, neighbours, scatter."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.seeing import curves
from experiments.seeing.representation import Representation
from experiments.seeing.section import Section

REFERENCE = ('G. Alain and Y. Bengio, "Understanding intermediate layers using linear classifier '
             'probes", 2016; K. Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, '
             'section 10.2.')


def section(networks: Mapping[str, Representation]) -> Section:
    """Section of the report. The keys are the networks' names."""
    first = next(iter(networks.values()))
    steps, count = first.steps, len(first.labels)
    measures = {
        'probe_of_map': ('probe_map', 'accuracy of a linear probe of the map (%)'),
        'probe_of_mean': ('probe_mean', 'accuracy of a linear probe of the mean (%)'),
        'nearest_neighbour': ('neighbours', 'accuracy of the nearest neighbour (%)'),
        'scatter': ('scatter', 'between-class / within-class scatter'),
    }
    series = {key: {name: getattr(network, field) for name, network in networks.items()}
              for key, (field, _) in measures.items()}
    charts = {f'separability_{key}': curves.lines(
        steps, series[key], title, 'network', scale='log' if key == 'scatter' else 'linear',
        count=None if key == 'scatter' else count)
        for key, (_, title) in measures.items()}
    charts['class_share'] = curves.lines(
        first.blocks,
        {part if len(networks) == 1 else f'{part}, {name}': getattr(network, f'{part}_share')
         for name, network in networks.items() for part in ('carried', 'branch')},
        'share of the variance between classes', 'part of the block', domain=(0, 1))
    described = {
        f'separability_{key}': f'{measures[key][1].capitalize()}. ' + ' '.join(
            _told(name, values, steps) for name, values in by_name.items())
        for key, by_name in series.items()}
    described['class_share'] = ('The part of the variance that lies between the classes. '
                                + ' '.join(_branches(name, network)
                                           for name, network in networks.items()))
    return Section(
        'How the classes come apart',
        f'Four views of one question, on {count} held-out images: a logistic regression fitted to '
        'training images, once on the whole feature map and once on its average over all '
        'positions, which is all that the last layer sees; the class of the nearest other image; '
        'and the scatter between the classes over the scatter within them. The bars are 95 % '
        'intervals for other images of this kind. Last, which part of '
        'the variance lies between the classes in what a block carries, and in what its branch '
        'adds.',
        REFERENCE, charts, described,
        numbers={f'{key}_{name}_{end}': float(values[i])
                 for key, by_name in series.items() for name, values in by_name.items()
                 for end, i in (('pixels', 0), ('last', -1))},
        tables={
            **{f'separability_{name}': curves.table(steps, {
                title: series[key][name] for key, (_, title) in measures.items()})
               for name in networks},
            'class_share': curves.table(first.blocks, {
                f'{part}, {name}': getattr(network, f'{part}_share')
                for name, network in networks.items() for part in ('carried', 'branch')})})


def _told(name: str, values: np.ndarray, steps: Sequence[str]) -> str:
    gains = np.diff(values)
    most = int(gains.argmax())
    return (f'{name.capitalize()}: {values[0]:.2f} in the pixels, {values[1]:.2f} after the stem, '
            f'{values[-1]:.2f} after the last block; most is gained in {steps[most + 1]} '
            f'(+{gains[most]:.2f}).')


def _branches(name: str, network: Representation) -> str:
    more = int((network.branch_share > network.carried_share).sum())
    return (f'In the {name} network the branch has a larger share of its variance between the '
            f'classes than what is carried in {more} of {len(network.blocks)} blocks '
            f'({network.branch_share.mean():.2f} against {network.carried_share.mean():.2f} on '
            'average).')
