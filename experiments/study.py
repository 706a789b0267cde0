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
from experiments import options, packages, runs
from experiments.claims import Finding
from experiments.grid import Cell
from experiments.ledger import Row
from resnet_jax.errors import UserError

Group = tuple[Any, ...]


def rows(grids: Sequence[Mapping[str, Sequence[str]]], default: str = options.DIGITS,
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
    if flags.FLAGS.ledger:
        options.check_workdir()
        path = pathlib.Path(flags.FLAGS.ledger)
        found = ledger_lib.select(ledger_lib.read(path), {})
        if not found:
            raise UserError(f'{path} has no finished run.')
        return found, path if path.is_dir() else path.parent
    workdir = options.folder(default)
    runs.say(f'workdir: {workdir}')
    found = runs.run(cells(grids, default, extra), workdir, flags.FLAGS.parallel)
    runs.fail_if_any(found, workdir)
    return found, workdir


def cells(grids: Sequence[Mapping[str, Sequence[str]]], default: str = options.DIGITS,
          extra: Sequence[str] = ()) -> list[Cell]:
    """The runs of some grids, without those that are in several; see `rows`."""
    base = [*options.base_arguments(default), *extra]
    found = {}
    for grid in grids:
        for cell in grid_lib.cells(base, {**grid, 'seed': flags.FLAGS.seeds}):
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
            rows: Sequence[Row] = ()) -> None:
    """Prints the result and writes it: charts as SVG and PNG, numbers as JSON, what was printed.

    Args:
      name: of the figure.
      folder: of the runs; --workdir goes first.
      charts: Altair charts by the end of their files' names.
      text: the table.
      findings: what became of the claims.
      numbers: what the charts show.
      rows: of the runs, which are written without their configs.
    """
    from experiments import charts as charts_lib
    from resnet_jax.output import write_whole

    folder = pathlib.Path(flags.FLAGS.workdir or folder)
    folder.mkdir(parents=True, exist_ok=True)
    printed = '\n\n'.join([text, *(finding.text() for finding in findings)])
    runs.say(printed)
    for suffix, chart in charts.items():
        charts_lib.save(chart, folder / f'{name}{suffix}')
    record = {'command': ['python', '-m', f'experiments.{name}', *sys.argv[1:]],
              'findings': [finding.record() for finding in findings], **numbers,
              'runs': [{column: row[column] for column in row if column != 'config'}
                       for row in rows]}
    write_whole(folder / f'{name}.json', json.dumps(record, indent=1) + '\n')
    write_whole(folder / f'{name}.txt', printed + '\n')
    runs.say(f'\n{name}.json, .txt, .svg and .png are in {folder}')
