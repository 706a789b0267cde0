"""The flags that several commands share, and the config and the folder that they name.

A command calls the functions for the flags that it has; to import this module defines none.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from resnet_jax import cli
from resnet_jax.errors import UserError

flags.disclaim_key_flags()  # a flag defined here belongs to the command that asks for it

# Of all commands that need no --config, so that they can share a folder and its runs.
DIGITS = str(cli.PROJECT / 'configs' / 'digits.py')


def workdir_flag() -> flags.FlagHolder:
    """Defines --workdir, see `folder`."""
    return cli.flag(flags.DEFINE_string, 'workdir', None,
                    'Folder of the sweep; runs that it already contains are not repeated. '
                    'Default: runs/NAME_sweep, for a config file NAME.py.')


def parallel_flag() -> flags.FlagHolder:
    """Defines --parallel, see `machine.share_out`."""
    return cli.flag(
        flags.DEFINE_integer, 'parallel', None,
        'Number of runs at a time. Default: one per core or GPU; on TPUs, one.', lower_bound=1)


def seeds_flag() -> flags.FlagHolder:
    """Defines --seeds, see `study.cells`."""
    return cli.flag(flags.DEFINE_list, 'seeds', ['0', '1', '2'], 'Seeds of the runs.')


def figure_flags() -> None:
    """Defines the flags of a command that trains runs or reads them from a ledger: `study.rows`."""
    cli.config_flag()
    cli.flag(flags.DEFINE_string, 'ledger', None,
             'Ledger of a sweep, or its folder: plot its runs without running anything. The '
             'results are written to --workdir, or beside the ledger.')
    seeds_flag()
    workdir_flag()
    parallel_flag()


def base_arguments(default: str = '') -> list[str]:
    """--config and its overrides as they were given to this command.

    Args:
      default: config file where none was given.
    """
    if flags.FLAGS.config is None:
        return [f'--config={default}']
    flag = flags.FLAGS['config']
    overrides = config_flags.get_override_values(flag)
    return [f'--config={config_flags.get_config_filename(flag)}',
            *(f'--config.{field}={value}' for field, value in overrides.items())]


def check_workdir() -> None:
    """Raises UserError if --workdir names a file or a URL; to be called before time is spent."""
    path = flags.FLAGS.workdir
    if path and '://' in path:
        raise UserError(f'--workdir={path} must be a folder: of these commands, only '
                        '`python -m experiments.sweep` writes to gs://BUCKET/FOLDER.')
    if path and pathlib.Path(path).is_file():
        raise UserError(f'--workdir={path} is a file, not a folder.')


def folder(default: str = '') -> pathlib.Path:
    """That --workdir names, or the one that all sweeps of a config share.

    Args:
      default: config file where none was given.

    Raises:
      UserError: --workdir names a file or a URL.
    """
    check_workdir()
    name = cli.config_name() if flags.FLAGS.config is not None else pathlib.Path(default).stem
    return cli.workdir(f'runs/{name}_sweep')
