"""Shared by the commands for the paper's figures: their runs, live or from a ledger, and output.

Each command first trains the runs that are missing in --workdir, as `experiments.sweep` would, and
then plots them. With --ledger nothing is run, and the runs in that ledger are plotted.
"""

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import grid as grid_lib
from experiments import ledger as ledger_lib
from experiments import packages, sweep
from experiments.claims import Finding
from experiments.grid import Cell
from experiments.ledger import Row
from resnet_jax import cli
from resnet_jax.errors import UserError

LEDGER = cli.flag(
    flags.DEFINE_string, 'ledger', None,
    'Ledger of a sweep, or its folder: plot its runs without running anything. The results are '
    'written to --workdir, or beside the ledger.')
SEEDS = cli.flag(flags.DEFINE_list, 'seeds', ['0', '1', '2'], 'Seeds of the runs.')
for name in ('config', 'workdir', 'parallel'):
    flags.declare_key_flag(name)

# Of all commands, so that they can share a folder and its runs.
DIGITS = str(cli.PROJECT / 'configs' / 'digits.py')
WORKDIR = sweep.WORKDIR

Group = tuple[Any, ...]


def rows(grids: Sequence[Mapping[str, Sequence[str]]], default: str = DIGITS,
         extra: Sequence[str] = ()) -> tuple[list[Row], pathlib.Path]:
    """The finished runs of a command, and the folder that they lie in.

    Args:
      grids: fields and values of the runs; the seeds are added.
      default: config file where --config is not given.
      extra: overrides that all runs share, behind those of the command line.

    Returns:
      All finished runs of --ledger; or those of the grids, after the missing ones have been done.

    Raises:
      UserError: of the config, the folder or the ledger; a package for the charts is missing; or
        some runs failed.
    """
    packages.check(*packages.CHARTS)
    if sweep.SWEEP.value or sweep.DRY_RUN.value:
        raise UserError('--sweep and --dry_run are flags of experiments.sweep only.')
    if LEDGER.value:
        path = pathlib.Path(LEDGER.value)
        found = ledger_lib.select(ledger_lib.read(path), {})
        if not found:
            raise UserError(f'{path} has no finished run.')
        return found, path if path.is_dir() else path.parent
    workdir = sweep.folder(default)
    sweep.say(f'workdir: {workdir}')
    found = sweep.run(cells(grids, default, extra), workdir, sweep.PARALLEL.value)
    sweep.fail_if_any(found, workdir)
    return found, workdir


def cells(grids: Sequence[Mapping[str, Sequence[str]]], default: str = DIGITS,
          extra: Sequence[str] = ()) -> list[Cell]:
    """The runs of some grids, without those that are in several; see `rows`."""
    base = [*sweep.base_arguments(default), *extra]
    found = {}
    for grid in grids:
        for cell in grid_lib.cells(base, {**grid, 'seed': SEEDS.value}):
            found.setdefault(cell.name, cell)
    return list(found.values())


def by(found: Iterable[Row], *fields: str) -> dict[Group, dict[int, Row]]:
    """Runs by the values of some fields of their config, and then by seed.

    Raises:
      UserError: two runs of a group have the same seed.
    """
    groups: dict[Group, dict[int, Row]] = {}
    for row in found:
        group = groups.setdefault(tuple(row['config'][field] for field in fields), {})
        seed = row['config']['seed']
        if seed in group:
            other = group[seed]
            differing = [field for field in row['config']
                         if row['config'][field] != other['config'].get(field)]
            raise UserError(f'the runs {other["run"]} and {row["run"]} differ in '
                            f'{", ".join(differing) or "nothing"}, which this figure does not '
                            'tell apart; give a ledger that has one of them only.')
        group[seed] = row
    return {key: dict(sorted(groups[key].items())) for key in sorted(groups, key=str)}


def values(group: Mapping[int, Row], column: str) -> list[float]:
    """A column of the ledger, a value for each seed."""
    return [row[column] for row in group.values()]


def publish(name: str, folder: pathlib.Path, charts: Mapping[str, Any], text: str,
            findings: Sequence[Finding], numbers: Mapping[str, Any],
            runs: Sequence[Row] = ()) -> None:
    """Prints the result and writes it: charts as SVG and PNG, numbers as JSON, what was printed.

    Args:
      name: of the figure.
      folder: of the runs; --workdir goes first.
      charts: Altair charts by the end of their files' names.
      text: the table.
      findings: what became of the claims.
      numbers: what the charts show.
      runs: their rows, which are written without their configs.
    """
    from experiments import charts as charts_lib
    from resnet_jax.output import write_whole

    folder = pathlib.Path(WORKDIR.value) if WORKDIR.value else folder
    folder.mkdir(parents=True, exist_ok=True)
    printed = '\n\n'.join([text, *(finding.text() for finding in findings)])
    sweep.say(printed)
    for suffix, chart in charts.items():
        charts_lib.save(chart, folder / f'{name}{suffix}')
    record = {'command': ['python', '-m', f'experiments.{name}', *sys.argv[1:]],
              'findings': [finding.record() for finding in findings], **numbers,
              'runs': [{column: row[column] for column in row if column != 'config'}
                       for row in runs]}
    write_whole(folder / f'{name}.json', json.dumps(record, indent=1) + '\n')
    write_whole(folder / f'{name}.txt', printed + '\n')
    sweep.say(f'\n{name}.json, .txt, .svg and .png are in {folder}')
