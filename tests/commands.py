"""Runs commands as `python -m` would, each in a fork of a process that has imported the libraries.

Reads [[name, argv, environment], …] as JSON from stdin, where a name is a module or the path of a
script. Prints [[exit status, stdout, stderr], …].
"""

import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback

# Only what defines no flags: those belong to the module that is run.
import flax.linen  # noqa: F401
import jax  # noqa: F401
import ml_collections  # noqa: F401
import optax  # noqa: F401
import scipy.stats  # noqa: F401


def run(name: str, argv: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.environ.update(environment)
            os._exit(_in_child(name, argv))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, *(file.seek(0) or file.read().decode() for file in (out, errors))


def _in_child(name: str, argv: list[str]) -> int:
    status = 0
    sys.argv = [name, *argv]
    try:
        if name.endswith('.py'):
            sys.path.insert(0, str(pathlib.Path(name).parent))
            runpy.run_path(name, run_name='__main__')
        else:
            runpy.run_module(name, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == '__main__':
    print(json.dumps([run(*command) for command in json.load(sys.stdin)]))
