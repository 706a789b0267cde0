"""Trains and uses residual networks; `resnet-jax` and `python -m resnet_jax` are the same.

  python -m resnet_jax train --config=configs/digits_r20.py
  python -m resnet_jax train --config=configs/folder.py --config.data.path=DIR
  python -m resnet_jax predict --checkpoint=runs/folder photo.jpg
"""

import ast
import difflib
import os
import pathlib
import runpy
import sys
import textwrap

# The modules of the package that are commands, by name, in the order in which people need them.
COMMANDS = {
    'train': 'main',
    'evaluate': 'evaluate',
    'predict': 'predict',
    'convert': 'convert',
    'export': 'export',
    'summary': 'summary',
    'check': 'data.check',
    'prepare': 'data.prepare',
    'compile': 'compile',
}
HELP = ('help', '-h', '-help', '--help')


def main() -> None:
    """Runs the command that the first argument names; without one, lists them all."""
    name = sys.argv[1] if len(sys.argv) > 1 else 'help'
    if name in HELP:
        try:
            print(listing(), flush=True)
        except BrokenPipeError:  # as in `resnet-jax | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif name in COMMANDS:
        del sys.argv[1]
        # As `python -m` does it, so that processes that it starts find their main module.
        runpy.run_module(f'resnet_jax.{COMMANDS[name]}', run_name='__main__', alter_sys=True)
    else:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f'did you mean {close[0]}?' if close else f'the commands are {", ".join(COMMANDS)}.'
        print(f'error: there is no command {name}; {hint}', file=sys.stderr)
        sys.exit(1)


def listing() -> str:
    """Writes what is printed without a command: examples, and what each command does."""
    width = max(map(len, COMMANDS)) + 4
    lines = [__doc__.strip(), '', 'Commands, each with --help:']
    for name, module in COMMANDS.items():
        path = pathlib.Path(__file__).parent / (module.replace('.', '/') + '.py')
        purpose = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        lines.append(textwrap.fill(purpose, 96, initial_indent=f'  {name}'.ljust(width),
                                   subsequent_indent=' ' * width))
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
