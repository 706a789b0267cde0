"""Table 9: average precision with box refinement, global context, multi-scale testing, ensembles.

  python -m experiments.detection
  python -m experiments.detection --config=configs/bccd_r18.py --config.data.path=DATA

Without --config it trains configs/scenes_r20.py, with and without global context, three seeds each,
from one classifier of configs/scenes_digits.py, which it trains first. Each row of the table adds
something to the row before; the last is one ensemble of all seeds. Writes detection.svg, .png,
.json and .txt to --workdir.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from experiments import grid, options, paper, runs, study, tables
from experiments.claims import Finding, estimate, higher_by_seed
from experiments.ledger import Row
from resnet_jax import cli

SCALES = cli.flag(
    flags.DEFINE_list, 'scales', None,
    'Shorter sides for multi-scale testing, in pixels. Default: 48,64,80 for the made-up scenes, '
    'otherwise as in resnet_jax.evaluate.')
options.figure_flags()

SCENES = str(cli.PROJECT / 'configs' / 'scenes_r20.py')
CLASSIFIER = str(cli.PROJECT / 'configs' / 'scenes_digits.py')
# The paper's scales enlarge by 5/3; objects are then larger than any that the detector has seen.
SCENE_SCALES = ['48', '64', '80']
START = 'runs/scenes_digits'  # what configs/scenes_r20.py starts from
CONTEXT = 'model.detector.context'
MEASURES = {'ap50': 'AP50', 'ap': 'AP'}


class Step(NamedTuple):
    """A row of the table.

    Attributes:
      context: which networks are tested.
      flags: of `resnet_jax.evaluate`.
      ensemble: whether all seeds are tested together.
    """

    context: bool
    flags: Mapping[str, Any]
    ensemble: bool = False


STEPS = {
    'baseline': Step(False, {}),
    '+ box refinement': Step(False, {'refine': True}),
    '+ global context': Step(True, {'refine': True}),
    '+ multi-scale testing': Step(True, {'refine': True, 'protocol': 'multi_scale'}),
    'ensemble': Step(True, {'refine': True, 'protocol': 'multi_scale'}, ensemble=True),
}

Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # row -> seed -> measure -> percent


def main(_) -> None:
    grids = [{CONTEXT: ['false', 'true']}]
    rows, folder = study.rows(grids, SCENES, [] if flags.FLAGS.ledger else start())
    groups = study.by(rows, CONTEXT)
    results = test(groups, folder)
    config = rows[0]['config']
    study.publish('detection', folder, {'': chart(results)}, table(results, config),
                  findings(results), {'rows': numbers(results)}, rows)


def start() -> list[str]:
    """Trains the classifier that the scenes' detectors start from, and names it.

    Returns:
      Overrides of the detectors' config; none if it starts from other weights.
    """
    config = cli.read_config(options.base_arguments(SCENES))
    if config.init.checkpoint != START:
        return []
    folder = options.folder(SCENES) / 'classifier'
    cells = grid.cells([f'--config={CLASSIFIER}'], {'seed': ['0']})
    found = runs.run(cells, folder)
    runs.fail_if_any(found, folder)
    return [f'--config.init.checkpoint={folder / cells[0].name}']


def test(groups: Mapping[tuple, Mapping[int, Row]], folder: pathlib.Path) -> Results:
    """Tests the trained networks by the protocol of each row of the table.

    Args:
      groups: runs by whether they have context, and by seed.
      folder: of the runs.

    Returns:
      `MEASURES` of each row by seed; an ensemble has the first of its seeds.
    """
    from resnet_jax.training.evaluation import evaluate

    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, step in STEPS.items():
        group = groups.get((step.context,), {})
        paths = {seed: str(folder / row['run']) for seed, row in group.items()}
        scenes = any(row['config']['data.source'] == 'scenes' for row in group.values())
        together = [list(paths)] if step.ensemble else [[seed] for seed in paths]
        if step.ensemble and len(paths) < 2:
            continue
        options = dict(step.flags)
        if 'protocol' in options:
            options['scales'] = SCALES.value or (SCENE_SCALES if scenes else None)
        for seeds in together:
            report = evaluate([paths[seed] for seed in seeds], None, 0, options, list(options))
            values = {key: report.values[f'eval/{key}'] for key in MEASURES}
            found.setdefault(name, {})[seeds[0]] = values
            runs.say(f'{name}, seed {" and ".join(map(str, seeds))}: ' + '  '.join(
                f'{MEASURES[key]} {value:.2f}' for key, value in values.items()))
    return found


def numbers(results: Results) -> list[dict[str, Any]]:
    """Mean, spread and interval of each row and measure, beside the paper's number."""
    found = []
    for name, seeds in results.items():
        for place, (key, label) in enumerate(MEASURES.items()):
            of = estimate([values[key] for values in seeds.values()])
            published = paper.COCO_AP.get(name), paper.COCO_TEST_DEV_AP.get(name)
            found.append({
                'row': name, 'measure': label, 'value': of.mean, 'std': of.std, 'seeds': of.n,
                'half_width': of.half_width, 'by_seed': [x[key] for x in seeds.values()],
                **{of: None if pair is None else pair[place] for of, pair in zip(
                    ('paper_val', 'paper_test_dev'), published, strict=True)}})
    return found


def table(results: Results, config: Mapping[str, Any]) -> str:
    """Table 9 with the measured numbers beside it."""
    lines = [['', *MEASURES.values(), 'seeds', 'paper, val', 'paper, test-dev']]
    for name, seeds in results.items():
        cells = [tables.mean_and_interval(estimate([x[key] for x in seeds.values()]), 2)
                 for key in MEASURES]
        published = [_pair(of.get(name)) for of in (paper.COCO_AP, paper.COCO_TEST_DEV_AP)]
        lines.append([name, *cells, str(len(seeds)) if name != 'ensemble' else 'all together',
                      *published])
    noted = tables.with_notes(
        lines, max(map(len, results.values())),
        f'{tables.INTERVAL}, which start from the same classifier',
        'the paper\'s numbers are AP50 / AP of ResNet-101 on COCO')
    return f'{paper.dataset(config)}, {paper.name(config)}, {config["num_steps"]:,} steps\n{noted}'


def _pair(numbers: tuple[float, float] | None) -> str:
    return '-' if numbers is None else ' / '.join(f'{x:.1f}' for x in numbers)


def findings(results: Results) -> list[Finding]:
    """That every row has a higher AP than the one before."""
    names = [name for name in STEPS if name in results]
    found = []
    for before, after in itertools.pairwise(names):
        a, b = ({seed: values['ap'] for seed, values in results[name].items()}
                for name in (after, before))
        if after == 'ensemble':  # against the mean of its members
            a, b = {0: next(iter(a.values()))}, {0: estimate(list(b.values())).mean}
        known = paper.COCO_AP if after in paper.COCO_AP else paper.COCO_TEST_DEV_AP
        found.append(higher_by_seed(
            f'{after.removeprefix("+ ")} raises AP', a, b,
            paper=f'{known[after][1]} against {known[before][1]} on COCO'))
    return found


def chart(results: Results) -> Any:
    """Both measures of each row, with their intervals."""
    import altair as alt

    from experiments import charts

    points = [{**row, 'low': row['value'] - (row['half_width'] or 0),
               'high': row['value'] + (row['half_width'] or 0)} for row in numbers(results)]
    base = alt.Chart(alt.Data(values=points)).encode(
        alt.X('row:N', sort=None, title=None, axis=alt.Axis(labelAngle=-20)),
        color=alt.Color('measure:N', title=None))
    return (base.mark_line(point=True).encode(
        alt.Y('value:Q', title='average precision, %', scale=alt.Scale(zero=False)))
        + base.mark_rule(strokeWidth=2).encode(alt.Y('low:Q'), alt.Y2('high:Q'))).properties(
            width=420, height=300, title={
                'text': 'What appendix B adds to Faster R-CNN',
                'subtitle': charts.over_seeds(max(row['seeds'] for row in points),
                                              ' and 95 % t-interval')})


if __name__ == '__main__':
    cli.run(main)
