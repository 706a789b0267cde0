"""Figures 1, 4 and 6: deeper plain networks train worse, deeper residual networks do not.

  python -m experiments.degradation
  python -m experiments.degradation --config=configs/cifar10.py --depths=20,32,44,56

Without --config it trains on scikit-learn's digits: depths 8, 20 and 56, plain and residual, three
seeds each, 18 runs in all. Writes degradation.svg and .png (training and test error during
training), .json (the numbers) and .txt (the table and the verdicts) to --workdir.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import options, paper, study, tables
from experiments.claims import Finding, estimate, lower, lower_in_every_seed
from experiments.ledger import Row
from resnet_jax import cli

DEPTHS = cli.flag(flags.DEFINE_list, 'depths', ['8', '20', '56'], 'Depths to compare.')
options.figure_flags()

CURVES_ONLY = 'only curves in the paper (figure 6, left)'
Groups = Mapping[tuple[int, bool], Mapping[int, Row]]  # (depth, plain) -> seed -> row


def main(_) -> None:
    rows, folder = study.rows([{'model.depth': DEPTHS.value, 'model.plain': ['true', 'false']}])
    groups = study.by(rows, 'model.depth', 'model.plain')
    from experiments import curves

    points = curves.points(rows, folder)
    study.publish('degradation', folder, {'': curves.chart(points)}, table(groups),
                  findings(groups), {'curves': points}, rows)


def table(groups: Groups) -> str:
    """A line for each network, mean ± half of the 95 % interval."""
    lines = [['network', 'paper', 'test error %', 'training error %', 'training loss', 'seeds']]
    for group in ordered(groups).values():
        config = _config(group)
        cells = [tables.mean_and_interval(estimate(study.values(group, column)), digits)
                 for column, digits in (('final_error', 2), ('final_train_error', 2),
                                        ('final_train_loss', 4))]
        lines.append([paper.name(config), paper.text(paper.error(config)), *cells,
                      str(len(group))])
    some = _config(next(iter(groups.values())))
    noted = tables.with_notes(lines, max(map(len, groups.values())), tables.INTERVAL,
                              'the paper\'s error is on CIFAR-10 or ImageNet')
    return f'{paper.dataset(some)}, {some["num_steps"]:,} steps\n{noted}'


def ordered(groups: Groups) -> Groups:
    """Plain networks first, then by depth."""
    return {key: groups[key] for key in sorted(groups, key=lambda key: (not key[1], key[0]))}


def findings(groups: Groups) -> list[Finding]:
    """What became of the claims of section 4, for every two depths that follow one another."""
    found = []
    for plain in (True, False):
        depths = sorted(depth for depth, is_plain in groups if is_plain == plain)
        for shallow, deep in itertools.pairwise(depths):
            a, b = groups[shallow, plain], groups[deep, plain]
            if not plain:
                a, b = b, a  # the deeper one should be lower
            found += _compare(a, b)
    depths = sorted(depth for depth, plain in groups
                    if not plain and (depth, True) in groups)
    for depth in depths:
        found += _compare(groups[depth, False], groups[depth, True])
    if depths:
        deepest = depths[-1]
        losses = [{seed: row['final_train_loss'] for seed, row in groups[deepest, plain].items()}
                  for plain in (False, True)]
        found.append(lower_in_every_seed(
            f'ResNet-{deepest} ends at a lower training loss than plain-{deepest} in every seed',
            *losses, paper=CURVES_ONLY))
    return found


def _compare(a: Mapping[int, Row], b: Mapping[int, Row]) -> list[Finding]:
    """That a network trains to a lower loss than another, and to a lower test error."""
    first, second = _config(a), _config(b)
    names = paper.name(first), paper.name(second)
    return [
        lower(f'{names[0]} has a lower training loss than {names[1]}',
              study.values(a, 'final_train_loss'), study.values(b, 'final_train_loss'),
              paper=CURVES_ONLY, digits=4),
        lower(f'{names[0]} has a lower test error than {names[1]}',
              study.values(a, 'final_error'), study.values(b, 'final_error'),
              paper=paper.pair(first, second, CURVES_ONLY), unit=' %'),
    ]


def _config(group: Mapping[int, Row]) -> Mapping[str, Any]:
    return next(iter(group.values()))['config']


if __name__ == '__main__':
    cli.run(main)
