"""Runs every combination of the values given to fields of a config, and keeps a ledger.

  python -m experiments.sweep --config=configs/cifar10.py --sweep model.depth=20,32,44 \\
      --sweep seed=0,1,2

Each run is a `python -m resnet_jax.main` in its own folder in --workdir, with its output in
log.txt; runs execute in parallel, one per core or GPU. On SIGTERM or Ctrl-C the runs save a
checkpoint and the sweep ends; run the same command again to resume. Finished runs are not repeated,
even for a larger sweep in the same folder; failed ones are retried. --dry_run prints the commands
of the missing runs, for use on a cluster; run the same sweep afterwards to add them to the ledger.
At the end, the sweep prints a table of means and standard deviations over the seeds. --workdir may
be gs://BUCKET/FOLDER; as buckets have no locks, start only one sweep at a time in one.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from experiments import grid, options, runs
from resnet_jax import cli, storage
from resnet_jax.errors import UserError

cli.config_flag()
SWEEP = cli.flag(
    flags.DEFINE_multi_string, 'sweep', [],
    'Field and its values, such as model.depth=20,32,44.')
options.workdir_flag()
PARALLEL = options.parallel_flag()
DRY_RUN = cli.flag(flags.DEFINE_bool, 'dry_run', False,
                   'Only print the commands of the missing runs.')


def main(_) -> None:
    from experiments.tables import over_seeds

    if not SWEEP.value:
        raise UserError(cli.give('--sweep FIELD=VALUE,VALUE,… at least once', __name__))
    in_bucket = storage.in_bucket(flags.FLAGS.workdir or '')
    workdir = cli.workdir() if in_bucket else options.folder()
    storage.check_reachable(workdir)
    cells = grid.cells(options.base_arguments(), grid.parse(SWEEP.value))
    if DRY_RUN.value:
        print_commands(cells, workdir)
        return
    runs.say(f'workdir: {workdir}')
    try:
        rows = runs.run(cells, workdir, PARALLEL.value)
    except Exception as error:  # gcsfs and what it uses raise many kinds
        if in_bucket and (problem := storage.problem(error)):
            raise UserError(f'{workdir} cannot be used: {problem}.') from error
        raise
    runs.say(over_seeds(rows))
    runs.fail_if_any(rows, workdir)


def print_commands(cells: Sequence[grid.Cell], workdir: storage.Path) -> None:
    """Prints the commands of the missing runs, and nothing else, on stdout."""
    from experiments import machine

    grid.check(cells, machine.look().num_devices)
    missing = runs.missing(cells, runs.open_ledger(cells, workdir))
    for cell in missing:
        print(shlex.join(['python', *runs.command(cell, workdir)[1:]]))
    print(f'{len(missing)} of {len(cells)} runs are missing', file=sys.stderr)


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
