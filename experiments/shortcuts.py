"""Table 3: shortcuts by zero padding (A), projection where the shape changes (B), and always (C).

  python -m experiments.shortcuts
  python -m experiments.shortcuts --config=configs/imagenet_r34.py --depth=34

Without --config it trains ResNet-20 and plain-20 on scikit-learn's digits, three seeds each: 12
runs. Writes shortcuts.svg, .png, .json and .txt to --workdir.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import grid, options, paper, study, tables
from experiments.claims import Finding, estimate, lower
from experiments.ledger import Row
from resnet_jax import cli
from resnet_jax.errors import UserError

DEPTH = cli.flag(flags.DEFINE_integer, 'depth', 20, 'Depth of all networks.')
options.figure_flags()

OPTIONS = ('A', 'B', 'C')
PLAIN = 'plain'
Groups = Mapping[str, Mapping[int, Row]]


def main(_) -> None:
    depth = [str(DEPTH.value)]
    rows, folder = study.rows([
        {'model.depth': depth, 'model.plain': ['true']},
        {'model.depth': depth, 'model.plain': ['false'], 'model.shortcut': OPTIONS}])
    rows = [row for row in rows if row['config']['model.depth'] == DEPTH.value]
    if not rows:
        raise UserError(f'the ledger has no finished run of depth {DEPTH.value}; set --depth.')
    groups = group(rows)
    numbers = results(groups)
    study.publish('shortcuts', folder, {'': chart(numbers)}, table(numbers), findings(groups),
                  {'networks': numbers}, rows)


def group(rows: Sequence[Row]) -> Groups:
    """Runs by their shortcut, and then by seed; plain networks, which have none, are one group."""
    groups = {}
    plain = [row for row in rows if row['config']['model.plain']]
    if plain:
        groups[PLAIN] = next(iter(study.by(plain, 'model.plain').values()))
    others = study.by([row for row in rows if row not in plain], 'model.shortcut')
    return groups | {option: others[option,] for option in OPTIONS if (option,) in others}


def results(groups: Groups) -> list[dict[str, Any]]:
    """Size, the paper's error and the measured ones of each option."""
    from resnet_jax.training.costs import summarize

    found = []
    for option, runs in groups.items():
        config = next(iter(runs.values()))['config']
        of = estimate(study.values(runs, 'final_error'))
        name = paper.name(config) + ('' if option == PLAIN else f' {option}')
        found.append({
            'network': name, 'dataset': paper.dataset(config),
            'parameters': summarize(grid.rebuild(config))['parameters'],
            'paper': paper.error(config), 'error': of.mean, 'std': of.std, 'seeds': of.n,
            'half_width': of.half_width,
            'loss': estimate(study.values(runs, 'final_train_loss')).mean})
    return found


def table(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Table 3 with the measured errors beside it."""
    lines = [['network', 'parameters', 'paper', 'test error %', 'training loss', 'seeds']]
    for row in numbers:
        lines.append([row['network'], f'{row["parameters"]:,}', paper.text(row['paper']),
                      tables.with_interval(row['error'], row['half_width'], 2),
                      f'{row["loss"]:.4f}', str(row['seeds'])])
    noted = tables.with_notes(lines, max(row['seeds'] for row in numbers), tables.INTERVAL,
                              'the paper\'s errors are of 10 crops of ImageNet images')
    return f'{numbers[0]["dataset"]}\n{noted}'


def findings(groups: Groups) -> list[Finding]:
    """That every option beats the plain network, B beats A, and C beats B."""
    pairs = [(option, PLAIN) for option in OPTIONS] + [('B', 'A'), ('C', 'B')]
    found = []
    for a, b in pairs:
        if a not in groups or b not in groups:
            continue
        configs = [next(iter(groups[option].values()))['config'] for option in (a, b)]
        other = 'the plain network' if b == PLAIN else f'option {b}'
        found.append(lower(
            f'option {a} has a lower test error than {other}',
            study.values(groups[a], 'final_error'), study.values(groups[b], 'final_error'),
            paper=paper.pair(*configs, 'table 3 has depth 34 on ImageNet'), unit=' %'))
    return found


def chart(numbers: Sequence[Mapping[str, Any]]) -> Any:
    """Bars of the error with their intervals."""
    import altair as alt

    from experiments import charts

    points = [{**row, 'low': row['error'] - (row['half_width'] or 0),
               'high': row['error'] + (row['half_width'] or 0)} for row in numbers]
    base = alt.Chart(alt.Data(values=points)).encode(
        alt.X('network:N', sort=None, title=None, axis=alt.Axis(labelAngle=0)))
    bars = base.mark_bar(width=40).encode(alt.Y('error:Q', title='top-1 test error, %'))
    return (bars + base.mark_rule(strokeWidth=2).encode(alt.Y('low:Q'), alt.Y2('high:Q'))
            ).properties(width=360, height=300, title={
                'text': f'Shortcuts on {numbers[0]["dataset"]}',
                'subtitle': charts.over_seeds(max(row['seeds'] for row in numbers),
                                              ' and 95 % t-interval')})


if __name__ == '__main__':
    cli.run(main)
