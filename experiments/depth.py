"""Table 6: the test error of residual networks of several depths, and their training error.

  python -m experiments.depth
  python -m experiments.depth --config=configs/cifar10.py --depths=20,32,44,56,110

Without --config it trains on scikit-learn's digits: depths 8, 20 and 56, three seeds each, unless
`experiments.degradation` has already trained them in the same folder. Writes depth.svg,
.png, .json and .txt to --workdir.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import grid, options, paper, study, tables
from experiments.claims import Finding, estimate, lower
from experiments.ledger import Row
from resnet_jax import cli

DEPTHS = cli.flag(flags.DEFINE_list, 'depths', ['8', '20', '56'], 'Depths to compare.')
options.figure_flags()

Groups = Mapping[tuple[int], Mapping[int, Row]]


def main(_) -> None:
    rows, folder = study.rows([{'model.depth': DEPTHS.value, 'model.plain': ['false']}])
    rows = [row for row in rows if not row['config']['model.plain']]
    groups = dict(sorted(study.by(rows, 'model.depth').items()))
    numbers = results(groups)
    study.publish('depth', folder, {'': chart(numbers)}, table(numbers), findings(groups),
                  {'networks': numbers}, rows)


def results(groups: Groups) -> list[dict[str, Any]]:
    """Size, the paper's error and the measured ones of each depth."""
    from resnet_jax.training.costs import summarize

    found = []
    for (depth,), group in groups.items():
        config = next(iter(group.values()))['config']
        of, train = (estimate(study.values(group, column))
                     for column in ('final_error', 'final_train_error'))
        found.append({
            'network': paper.name(config), 'depth': depth, 'dataset': paper.dataset(config),
            'parameters': summarize(grid.rebuild(config))['parameters'],
            'paper': paper.error(config), 'error': of.mean, 'std': of.std, 'seeds': of.n,
            'half_width': of.half_width, 'best': min(study.values(group, 'best_error')),
            'train_error': train.mean, 'train_half_width': train.half_width})
    return found


def table(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Table 6 with the measured errors beside it."""
    lines = [['network', 'parameters', 'paper', 'test error %', 'best evaluation',
              'training error %', 'seeds']]
    for row in numbers:
        lines.append([row['network'], f'{row["parameters"]:,}', paper.text(row['paper']),
                      tables.with_interval(row['error'], row['half_width'], 2),
                      f'{row["best"]:.2f}',
                      tables.with_interval(row['train_error'], row['train_half_width'], 2),
                      str(row['seeds'])])
    has_110 = any(row['depth'] == 110 and row['dataset'] == paper.CIFAR10 for row in numbers)
    others = [f'the paper\'s ResNet-110: {paper.CIFAR10_110_RUNS}'] if has_110 else []
    noted = tables.with_notes(lines, max(row['seeds'] for row in numbers), tables.INTERVAL, *others)
    return f'{numbers[0]["dataset"]}\n{noted}'


def findings(groups: Groups) -> list[Finding]:
    """That each depth has a lower error than the one before, and the last than the first."""
    depths = list(groups)
    pairs = list(itertools.pairwise(depths))
    if len(depths) > 2:
        pairs.append((depths[0], depths[-1]))
    found = []
    for shallow, deep in pairs:
        a, b = groups[deep], groups[shallow]
        configs = [next(iter(group.values()))['config'] for group in (a, b)]
        found.append(lower(
            f'{paper.name(configs[0])} has a lower test error than {paper.name(configs[1])}',
            study.values(a, 'final_error'), study.values(b, 'final_error'),
            paper=paper.pair(*configs, 'table 6: the error falls from depth 20 to 110'), unit=' %'))
    return found


def chart(numbers: Sequence[Mapping[str, Any]]) -> Any:
    """Error against depth: measured with its interval, which ends at 0, and the paper's."""
    import altair as alt

    from experiments import charts

    points = [{'depth': row['depth'], 'error': row['error'], 'of': 'measured',
               'low': max(0, row['error'] - (row['half_width'] or 0)),
               'high': row['error'] + (row['half_width'] or 0)} for row in numbers]
    points += [{'depth': row['depth'], 'error': row['paper'], 'of': 'paper', 'low': row['paper'],
                'high': row['paper']} for row in numbers if row['paper'] is not None]
    x = alt.X('depth:O', title='depth', axis=alt.Axis(labelAngle=0))
    alone = len({point['of'] for point in points}) == 1
    color = alt.Color('of:N', title=None, legend=None if alone else alt.Legend())
    base = alt.Chart(alt.Data(values=points))
    return (base.mark_line(point=True).encode(
        x, alt.Y('error:Q', title='top-1 test error, %', scale=alt.Scale(zero=True)), color)
        + base.mark_rule().encode(x, alt.Y('low:Q'), alt.Y2('high:Q'), color=color)).properties(
            width=360, height=300, title={
                'text': f'Residual networks on {numbers[0]["dataset"]}',
                'subtitle': charts.over_seeds(max(row['seeds'] for row in numbers),
                                              ' and 95 % t-interval, cut off at 0')})


if __name__ == '__main__':
    cli.run(main)
