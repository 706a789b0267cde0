"""Runs commands as `python -m` would, each in a fork of a process that has imported the libraries.

`python tests/commands.py` reads requests from stdin and answers them on stdout, each one line of
JSON. All tests of a session share one such process, in the fixture `commands`. What JAX reads from
the environment as it is imported cannot be set for a command; XLA_FLAGS can.
"""

import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent


class Command:
    """A command that was started.

    Attributes:
      status: the exit status, or the negated number of the signal that ended it; None while it
        runs.
    """

    def __init__(self, server: 'Commands', pid: int, folder: pathlib.Path):
        self.pid, self.status = pid, None
        self._server, self._folder = server, folder

    @property
    def output(self) -> str:
        """What it has written to stdout so far."""
        return (self._folder / 'out').read_text()

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return (self._folder / 'err').read_text()

    def poll(self) -> int | None:
        if self.status is None:
            self.status = self._server.ask('poll', self.pid)
        return self.status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 600) -> int:
        """Waits for its end, and kills it where that does not come; the exit status."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        return self.status

    def until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Waits until a condition holds, while the command runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, self.output + self.errors
            assert time.monotonic() < end
            time.sleep(0.002)


class Commands:
    """The process that forks, seen from the tests."""

    def __init__(self):
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
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
          name: a module, the path of a script that ends in '.py', or '-c' with the code as the
            first argument.
          arguments: what follows on its command line.
          env: variables to set, or to unset where the value is None.
          cwd: the folder to run in.
          stdin: the bytes of its standard input.
        """
        folder = pathlib.Path(tempfile.mkdtemp(dir=self._folders.name))
        (folder / 'in').write_bytes(stdin)
        for output in ('out', 'err'):  # may be read before the fork opens them
            (folder / output).touch()
        pid = self.ask('start', str(name), [*map(str, arguments)], env or {}, str(cwd),
                       str(folder))
        return Command(self, pid, folder)

    def run(self, name, *arguments, **options) -> Command:
        """Runs a command to its end; the arguments are those of `start`."""
        command = self.start(name, *arguments, **options)
        command.wait()
        return command

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._folders.cleanup()


def look_for_garbage_rarely() -> None:
    """Turns the collector on again, for what is created from now on: what is imported stays."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def serve() -> None:
    gc.disable()
    # Only what defines no flags: those belong to the module that is run.
    import scipy.stats  # noqa: F401

    import resnet_jax.training.loop  # noqa: F401

    look_for_garbage_rarely()  # in all forks
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
        if name == '-c':
            exec(sys.argv.pop(1), {'__name__': '__main__'})
        elif name.endswith('.py'):
            sys.path.insert(0, str(pathlib.Path(name).parent))
            runpy.run_path(name, run_name='__main__')
        else:
            sys.path.insert(0, os.getcwd())  # as `python -m` does
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
