"""What the commands share: the --config flag, and one sentence instead of a traceback."""

import difflib
import functools
import itertools
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from resnet_jax.config import leaves
from resnet_jax.errors import UserError

# What a config file that is not there or wrong, or an override, may raise.
CONFIG_ERRORS = (flags.Error, AttributeError, ImportError, KeyError, OSError, SyntaxError,
                 TypeError, ValueError)


class OptionalParser(flags.ArgumentParser):
    """Parses a number as usual, and 'none' or 'null' as no number."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        if isinstance(argument, str) and argument.lower() in ('none', 'null'):
            return None
        return self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


def flag(define: Callable[..., flags.FlagHolder], name: str, *args, **kwargs) -> flags.FlagHolder:
    """Defines a flag, unless another command has defined one of this name.

    Commands share their flags, so that one process can import several of them.

    Args:
      define: such as `flags.DEFINE_string`, called with the name and the other arguments.
      name: of the flag.
    """
    if name in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])
    return define(name, *args, **kwargs)


def config_flag(required: bool = True) -> flags.FlagHolder:
    """The flag --config; fields are set by --config.a.b=value, and 'none' empties them."""
    holder = _config_flag()
    if required:
        flags.mark_flag_as_required('config')
    return holder


@functools.cache
def _config_flag() -> flags.FlagHolder:
    config_flags.register_flag_parser_for_type(int, OptionalParser(flags.IntegerParser()))
    config_flags.register_flag_parser_for_type(float, OptionalParser(flags.FloatParser()))
    return config_flags.DEFINE_config_file(
        'config', None, 'Config file, such as configs/digits_r20.py. Any of its fields is set by '
        '--config.FIELD=VALUE, such as --config.model.depth=56; resnet_jax/config.py explains '
        'them all.')


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The config of arguments such as '--config=configs/digits_r20.py', '--config.model.depth=56'.

    Raises:
      UserError: there is no such file or field, or a value is of another type than its field.
    """
    _config_flag()  # knows how to parse fields that may be empty
    argv, values = ['', *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    _find_configs(argv)
    try:
        values(argv)
        return values.config
    except CONFIG_ERRORS as error:
        problem = _config_problem(argv)
        if problem is None and not isinstance(error, flags.Error):
            raise
        raise UserError(problem or ' '.join(str(error).split())) from error


def json_flag() -> flags.FlagHolder:
    """The flag --json."""
    return flag(flags.DEFINE_bool, 'json', False, 'Print one JSON object instead of a table.')


def process_flags() -> tuple[flags.FlagHolder, ...]:
    """The flags --coordinator, --num_processes and --process_id, for `resnet_jax.processes.job`."""
    return (
        flag(flags.DEFINE_string, 'coordinator', None,
             'Address and port of process 0, of a job of several processes that neither Cloud TPU '
             'nor SLURM nor Open MPI started.'),
        flag(flags.DEFINE_integer, 'num_processes', None, 'Processes of such a job.'),
        flag(flags.DEFINE_integer, 'process_id', None, 'Number of this process, from 0.'))


def run(main: Callable[[Sequence[str]], int | None], takes_files: bool = False) -> None:
    """Parses the flags and runs a command.

    A mistake of the user's ends in one sentence on stderr and exit status 1; any other error keeps
    its traceback.

    Args:
      main: takes what is left when the flags are parsed, the program's name first; returns the exit
        status.
      takes_files: whether arguments that are no flags are welcome.
    """
    def guarded(argv):
        try:
            return main(argv)
        except UserError as error:
            fail(str(error))

    app.run(guarded, flags_parser=functools.partial(_parse, takes_files=takes_files))


def fail(message: str) -> None:
    """Prints one sentence and exits with 1."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(1)


def _parse(argv: Sequence[str], takes_files: bool) -> list[str]:
    """Parses the flags; whatever is wrong with them ends in one sentence."""
    _find_configs(argv)
    try:
        rest = flags.FLAGS(argv)
        if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.is_locked  # noqa: B018  (a missing file is told on the first access)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), 1)
        fail(f'there is no flag --{error.flagname}' + _hint(f'--{close[0]}' if close else None))
    except CONFIG_ERRORS as error:
        problem = _config_problem(argv)
        if problem is None and not isinstance(error, flags.Error):
            raise
        fail(problem or ' '.join(str(error).split()))
    if len(rest) > 1 and not takes_files:
        fail(f'{rest[1]!r} is no flag; flags look like --name=value.')
    if flags.FLAGS['verbosity'].using_default_value:
        logging.set_verbosity(logging.ERROR)  # Orbax tells every detail of its work otherwise
    return rest


def _find_configs(argv: Sequence[str]) -> None:
    """Lets config files import one another, from whichever folder the command is given in."""
    path = _values(argv).get('config')
    if path and (folder := str(pathlib.Path(path).resolve().parent.parent)) not in sys.path:
        sys.path.append(folder)


def _config_problem(argv: Sequence[str]) -> str | None:
    """What is wrong with --config or an override, if that can be told."""
    values = _values(argv)
    if 'config' not in values:
        if any(name.startswith('config.') for name in values):
            return 'fields of the config can only be set after --config=FILE.'
        return None
    path = pathlib.Path(values['config'])
    if not path.is_file():
        return f'there is no config file {path}; those that come with the project lie in configs/.'
    try:
        known = leaves(runpy.run_path(str(path))['get_config']())
    except (AttributeError, ImportError, KeyError, SyntaxError) as error:
        return (f'{path} is no config file: a Python file with a function get_config() '
                f'({type(error).__name__}: {error}).')
    for field in (name.removeprefix('config.') for name in values if name.startswith('config.')):
        if any(name.startswith(field + '.') for name in known):
            return f'{field} is a section of the config; set one of its fields.'
        if field not in known:
            close = difflib.get_close_matches(field, known, 1, 0.5)
            return f'the config has no field {field}' + _hint(close[0] if close else None)
    return None


def _values(argv: Sequence[str]) -> dict[str, str]:
    """The flags of the command line, given as --name=value or as --name value."""
    values = {}
    for arg, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=''):
        if arg.startswith('-'):
            name, equals, value = arg.lstrip('-').partition('=')
            values[name] = value if equals else following
    return values


def _hint(suggestion: str | None) -> str:
    return f'; did you mean {suggestion}?' if suggestion else '.'
