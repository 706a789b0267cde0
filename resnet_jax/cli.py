"""Shared by all commands: flags, --help, and one-line errors instead of tracebacks."""

import ast
import difflib
import functools
import inspect
import itertools
import os
import pathlib
import re
import runpy
import select
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from resnet_jax import storage
from resnet_jax.config import check_ranges, given, leaves, problem_of_name
from resnet_jax.errors import UserError

flags.disclaim_key_flags()  # a flag defined here belongs to the command that asks for it

# What a config file that is missing or wrong, or an override, may raise.
CONFIG_ERRORS = (flags.Error, AttributeError, ImportError, KeyError, OSError, SyntaxError,
                 TypeError, ValueError)
# In --help.
LAST = ('benchmark', 'images', 'json', 'coordinator', 'num_processes', 'process_id', 'traceback')
HELP = ('-h', '-help', '--help', '--helpshort', '-?')
PROJECT = pathlib.Path(__file__).resolve().parent.parent


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


class SizeParser(flags.ArgumentParser):
    """Parses the side of a square, or '(height, width)'; of equal sides a square."""

    syntactic_help = "a number, or '(height, width)'"

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument
        try:
            size = ast.literal_eval(argument)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f'must be {self.syntactic_help}') from error
        sides = set(size) if isinstance(size, tuple) else ()
        return sides.pop() if len(sides) == 1 and len(size) == 2 else size

    def flag_type(self) -> str:
        return 'size'


def flag(define: Callable[..., flags.FlagHolder], name: str, *args, **kwargs) -> flags.FlagHolder:
    """Defines a flag of the calling command, which --help lists.

    Where another command of this process has defined a flag of this name, that one is shared, so
    that one process can import several commands.

    Args:
      define: such as `flags.DEFINE_string`, called with the name and the other arguments.
      name: of the flag.
    """
    if name in flags.FLAGS:
        flags.declare_key_flag(name)
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])
    return define(name, *args, **kwargs)


def config_flag() -> flags.FlagHolder:
    """Defines --config; fields are set by --config.a.b=value, and cleared by 'none'."""
    _let_numbers_be_empty()
    return flag(
        config_flags.DEFINE_config_file, 'config', None,
        'Config file, such as configs/digits_r20.py. Set any of its fields with '
        '--config.FIELD=VALUE, such as --config.model.depth=56; resnet_jax/config/fields.py lists '
        'them all.')


def set_fields() -> frozenset[str]:
    """The fields of --config that the command line sets, such as 'data.image_size'."""
    if flags.FLAGS.config is None:
        return frozenset()
    return frozenset(config_flags.get_override_values(flags.FLAGS['config']))


@functools.cache
def _let_numbers_be_empty() -> None:
    config_flags.register_flag_parser_for_type(int, OptionalParser(flags.IntegerParser()))
    config_flags.register_flag_parser_for_type(float, OptionalParser(flags.FloatParser()))
    # data.image_size is the one field of two types.
    config_flags.register_flag_parser_for_type(object, OptionalParser(SizeParser()))


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The config of arguments such as '--config=configs/digits_r20.py', '--config.model.depth=56'.

    Raises:
      UserError: there is no such file or field, or a value is of another type than its field.
    """
    _let_numbers_be_empty()
    argv, values = ['', *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    _find_configs(argv)
    try:
        values(argv)
        values.config.is_locked  # noqa: B018  (a missing file is noticed on the first access)
        return values.config
    except CONFIG_ERRORS as error:
        problem = _config_problem(argv)
        if problem is None and not isinstance(error, flags.Error):
            raise
        raise UserError(problem or ' '.join(str(error).split())) from error


def name_of(config: str) -> str:
    """The name of a config file without folder and suffix, such as 'digits_r20'.

    What the file is given after a colon follows: 'imagenet_pod_r152_v5e-256'.
    """
    path, _, argument = config.partition(':')
    return '_'.join([pathlib.Path(path).stem, *filter(None, re.split(r'[^\w.-]+', argument))])


def config_name() -> str:
    """The name of the --config file; see `name_of`."""
    return name_of(config_flags.get_config_filename(flags.FLAGS['config']))


def workdir(default: str | None = None) -> storage.Path:
    """The folder that --workdir names.

    Args:
      default: the folder where it names none; None: runs/NAME, after the config file NAME.py.
    """
    return storage.path_of(flags.FLAGS.workdir or default or f'runs/{config_name()}')


def json_flag() -> flags.FlagHolder:
    """Defines the flag --json."""
    return flag(flags.DEFINE_bool, 'json', False, 'Print JSON instead of a table.')


def process_flags() -> tuple[flags.FlagHolder, ...]:
    """Defines the flags --coordinator, --num_processes and --process_id, for `processes.job`."""
    return (
        flag(flags.DEFINE_string, 'coordinator', None,
             'Address and port of process 0. Only needed for jobs of several processes that are '
             'not started by Cloud TPU, SLURM or Open MPI.'),
        flag(flags.DEFINE_integer, 'num_processes', None,
             'Number of processes, with --coordinator.'),
        flag(flags.DEFINE_integer, 'process_id', None,
             'Number of this process, from 0, with --coordinator.'))


def run(main: Callable[[Sequence[str]], int | None], needs: Sequence[str] = (),
        takes_files: bool = False) -> None:
    """Parses the flags and runs a command.

    A user's mistake is reported in one line on stderr, with exit status 1; --traceback or
    RESNET_JAX_TRACEBACK=1 shows its traceback as well. All other errors keep their traceback. Where
    nobody reads stdout any more, as in `| head`, the command ends.

    Args:
      main: takes what is left when the flags are parsed, the program's name first; returns the exit
        status. --help prints the docstring of its module.
      needs: flags without which the command cannot run, as '--config=FILE'.
      takes_files: whether the command takes arguments that are not flags.
    """
    if 'traceback' not in flags.FLAGS:
        flags.DEFINE_bool('traceback', os.environ.get('RESNET_JAX_TRACEBACK', '') not in ('', '0'),
                          'Show the traceback of errors that are otherwise reported in one line; '
                          'RESNET_JAX_TRACEBACK=1 does the same.')

    # Names of files need not be text, nor need a terminal know all letters.
    sys.stdout.reconfigure(errors='backslashreplace')

    def guarded(argv):
        try:
            if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
                check_ranges(given(flags.FLAGS.config))
            status = main(argv)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            if not _nobody_reads(sys.stdout.fileno()):
                raise
            _silence()
            return 0
        except UserError as error:
            if flags.FLAGS.traceback:
                raise
            fail(str(error))

    app.run(guarded, flags_parser=functools.partial(
        _parse, main=main, needs=needs, takes_files=takes_files))


def _nobody_reads(file: int) -> bool:
    """Whether a file descriptor is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(file, 0)
    return bool(poll.poll(0))


def _silence() -> None:
    """Leads stdout nowhere, so that Python does not fail to flush it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str) -> None:
    """Prints one sentence and exits with 1."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(1)


def give(what: str, module: str) -> str:
    """Writes a sentence that asks for flags, with the first example of the command's docstring.

    Args:
      what: the flags, as '--config=FILE'.
      module: of the command.
    """
    doc = (sys.modules[module].__doc__ or '').replace('\\\n', ' ')
    example = re.search(r'^ +(python .*)$', doc, re.MULTILINE)
    return f'give {what}' + (
        f', for example: {" ".join(example[1].split())}' if example else '; see --help.')


def help_text(main: Callable, needs: Sequence[str] = ()) -> str:
    """Writes what --help prints: what the command does, and all of its flags.

    The flags that it needs come first, then the others in the order in which it defines them, and
    those of LAST at the end.
    """
    module = main.__module__
    lines = [sys.modules[module].__doc__.strip(), '', 'Flags:']
    needed = [need[2:].partition('=')[0] for need in needs]
    for one in sorted(flags.FLAGS.get_key_flags_for_module(module),
                      key=lambda one: (one.name in LAST, one.name not in needed)):
        values = getattr(one.parser, 'enum_values', ())
        # absl puts the values before the help, and that a flag may be repeated behind it.
        facts = [' '.join(one.help.removeprefix(f'<{"|".join(values)}>: ').partition(
            ';\n    repeat this option')[0].split())]
        if isinstance(one, flags.MultiFlag):
            facts.append('May be given several times.')
        if one.default not in (None, False, '', []):
            default = one.default if isinstance(one.default, list) else [one.default]
            facts.append(f'Default: {",".join(map(str, default))}.')
        lines += [f'  --{"[no]" if one.boolean else ""}{one.name}'
                  + (f'={"|".join(values)}' if values else ''),
                  textwrap.fill(' '.join(facts), 96, initial_indent=' ' * 6,
                                subsequent_indent=' ' * 6)]
    return '\n'.join(lines)


def _parse(argv: Sequence[str], main: Callable, needs: Sequence[str],
           takes_files: bool) -> list[str]:
    """Parses the flags; whatever is wrong with them ends in one sentence."""
    before_files = itertools.takewhile(lambda argument: argument != '--', argv[1:])
    if any(argument in HELP for argument in before_files):
        try:
            print(help_text(main, needs), flush=True)
        except BrokenPipeError:  # as in `--help | head`
            _silence()
        sys.exit(0)
    _find_configs(argv)
    try:
        rest = flags.FLAGS(argv)
        if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.is_locked  # noqa: B018  (a missing file is noticed on the first access)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), 1)
        problem = _config_problem(argv) if 'config' in flags.FLAGS else None
        fail(problem or f'there is no flag --{error.flagname}'
             + _hint(f'--{close[0]}' if close else None))
    except UserError as error:  # of a config file
        fail(str(error))
    except CONFIG_ERRORS as error:
        problem = _config_problem(argv)
        if problem is None and not isinstance(error, flags.Error):
            raise
        fail(problem or ' '.join(str(error).split()))
    if len(rest) > 1 and not takes_files:
        fail(f'unexpected argument {rest[1]!r}; options have the form --name=value.')
    missing = [need for need in needs if _is_empty(flags.FLAGS[need[2:].partition('=')[0]].value)]
    if missing:
        fail(give(' and '.join(missing), main.__module__))
    folder = flags.FLAGS.workdir if 'workdir' in flags.FLAGS else None
    if folder is not None and _is_empty(folder):
        fail('--workdir is empty; give it a folder, such as --workdir=runs/digits.')
    if flags.FLAGS['verbosity'].using_default_value:
        logging.set_verbosity(logging.ERROR)  # Orbax logs every detail otherwise
    return rest


def _is_empty(value: Any) -> bool:
    """Whether a flag was not given, or given without a value."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


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
    name, _, argument = values['config'].partition(':')
    path = pathlib.Path(name)
    if not path.is_file():
        return _no_config(path)
    no_config = f'{path} is not a config file, which is a Python file with a function get_config()'
    try:
        file = runpy.run_path(str(path))
        if 'get_config' not in file:
            return f'{no_config}.'
        if argument and not inspect.signature(file['get_config']).parameters:
            return f'{path} takes no argument; leave out :{argument}.'
        known = leaves(file['get_config'](*filter(None, [argument])))
    except (ImportError, SyntaxError) as error:
        return f'{no_config} ({type(error).__name__}: {error}).'
    except Exception:  # a mistake in the file, which the caller shows with its traceback
        return None
    for field in (name.removeprefix('config.') for name in values if name.startswith('config.')):
        if problem := problem_of_name(field, known):
            return problem
    return None


def _no_config(path: pathlib.Path) -> str:
    """Where the configs are instead; absolute, since the command may be given in any folder."""
    folder = PROJECT / 'configs'
    sentence = f'there is no config file {path}'
    names = [file.name for file in folder.glob('*.py')]
    if not names:
        return (f'{sentence}; the configs are in the folder configs/ of a clone of the project, '
                'and this installation was not made from one.')
    close = [path.name] if path.name in names else difflib.get_close_matches(path.name, names, 3)
    return (sentence + _hint(' or '.join(str(folder / name) for name in close))
            + f' The configs of the project are in {folder}.')


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
