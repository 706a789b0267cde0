"""Runs commands as `python -m` would, each in a fork of a process that has imported the libraries.

`python tests/commands.py` reads requests from stdin and answers them on stdout, each one line of
JSON. All tests of a session share one such process, in the fixture `commands`. What JAX reads from
the environment as it is imported cannot be set for a command; XLA_FLAGS can.
"""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Result(NamedTuple):
    """What a command that has ended leaves."""

    status: int
    output: str
    errors: str


class Command:
    """A command that was started."""

    def __init__(self, server, pid, folder):
        self.pid = pid
        self._server, self._folder, self._status = server, folder, None

    def poll(self):
        """The exit status, the negated signal, or None while it runs."""
        if self._status is None:
            self._status = self._server.ask('poll', self.pid)
        return self._status

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=600) -> Result:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, 'the command does not end'
            time.sleep(0.005)
        return Result(self._status, *(
            (self._folder / name).read_bytes().decode() for name in ('out', 'err')))

    def until(self, condition, timeout=300):
        """Waits until a condition holds, while the command runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, self.wait()
            assert time.monotonic() < end
            time.sleep(0.002)


class Commands:
    """The process that forks, seen from the tests."""

    def __init__(self):
        environment = os.environ | {'PYTHONPATH': str(ROOT)}
        environment.pop('RESNET_JAX_TRACEBACK', None)
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment)
        self._folders = tempfile.TemporaryDirectory(prefix='commands_')

    def ask(self, *request):
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, name, *arguments, env=None, cwd=ROOT, stdin=b'') -> Command:
        """Starts a command.

        Args:
          name: a module, or the path of a script that ends in '.py'.
          arguments: what follows on its command line.
          env: variables to set, or to unset where the value is None.
          cwd: the folder to run in.
          stdin: the bytes of its standard input.
        """
        folder = pathlib.Path(tempfile.mkdtemp(dir=self._folders.name))
        (folder / 'in').write_bytes(stdin)
        pid = self.ask('start', name, [*map(str, arguments)], env or {}, str(cwd),
                       str(folder))
        return Command(self, pid, folder)

    def run(self, name, *arguments, **options) -> Result:
        return self.start(name, *arguments, **options).wait()

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._folders.cleanup()


def serve() -> None:
    # Only what defines no flags: those belong to the module that is run.
    import scipy.stats  # noqa: F401

    import resnet_jax.training.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # nothing else goes there
    for line in sys.stdin:
        kind, *request = json.loads(line)
        print(json.dumps({'start': _start, 'poll': _poll}[kind](*request)), file=answers,
              flush=True)


def _poll(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _start(name, arguments, environment, cwd, folder) -> int:
    pid = os.fork()
    if pid == 0:
        for number, part in enumerate(('in', 'out', 'err')):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(f'{folder}/{part}', flags, 0o600), number)
        os.chdir(cwd)
        for variable, value in environment.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value
        os._exit(_in_child(name, arguments))
    return pid


def _in_child(name: str, arguments: list[str]) -> int:
    status = 0
    sys.stdin = os.fdopen(0)
    sys.argv = [name, *arguments]
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
    serve()
