"""Executes the runs of a sweep, as many at a time as the machine has cores or GPUs.

Each is a `python -m resnet_jax.main` in its own folder, with its output in log.txt. On SIGTERM or
Ctrl-C the runs save a checkpoint. What is finished stands in the ledger and is not repeated.

A sweep in a bucket keeps its lock, which other machines do not see, and the logs of the runs that
are under way on this machine.
"""

import collections
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence

from experiments import grid as grid_lib
from experiments import ledger as ledger_lib
from experiments.grid import Cell
from experiments.ledger import Ledger, Row
from resnet_jax import storage
from resnet_jax.distributed.cores import restrict
from resnet_jax.errors import UserError
from resnet_jax.output import duration
from resnet_jax.training.writers import read_rows

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 30.0  # between lines, or this share of the time so far
PROGRESS_SHARE = 0.02
ERROR_LENGTH = 300  # characters of a run's last words


def say(message: str) -> None:
    """A line on the terminal; unlike `writers.say` it does not take hold of an accelerator."""
    print(message, flush=True)


def command(cell: Cell, workdir: storage.Path) -> list[str]:
    """The command of one run."""
    return [sys.executable, '-m', 'resnet_jax.main', *cell.arguments,
            f'--workdir={workdir / cell.name}']


def run(cells: Sequence[Cell], workdir: storage.Path, parallel: int | None = None) -> list[Row]:
    """Does what is missing of a sweep.

    Args:
      cells: of the sweep.
      workdir: of the sweep; afterwards it holds ledger.jsonl and a folder for each run.
      parallel: runs at a time; None: see `machine.share_out`.

    Returns:
      The row of every cell, in their order.

    Raises:
      UserError: a config is wrong, or the folder holds runs of another one.
      SystemExit: a signal came; the runs have been saved.
    """
    ledger = open_ledger(cells, workdir)
    left = missing(cells, ledger)
    if left:
        from experiments import machine as machine_lib

        machine = machine_lib.look()
        shares = machine_lib.share_out(machine, parallel, [cell.config for cell in left])
        grid_lib.check(left, machine_lib.devices_of(machine, shares))
        local = on_this_machine(workdir)
        local.mkdir(parents=True, exist_ok=True)
        with (local / 'sweep.lock').open('w') as lock:
            _wait_for(lock, workdir)
            ledger = open_ledger(cells, workdir)  # another sweep may have been at work meanwhile
            _collect(left, workdir, ledger)
            left = missing(left, ledger)
            _Runs(left, len(cells), workdir, ledger, shares, machine, lock).to_the_end()
    return [ledger.rows[cell.name] for cell in cells]


def on_this_machine(workdir: storage.Path) -> pathlib.Path:
    """The folder itself, or that of a sweep in a bucket for its lock and logs."""
    if not storage.in_bucket(workdir):
        return pathlib.Path(workdir)
    name = urllib.parse.quote(str(workdir), safe='')
    return pathlib.Path(tempfile.gettempdir()) / f'resnet_jax_sweeps_{os.getuid()}' / name


def open_ledger(cells: Sequence[Cell], workdir: storage.Path) -> Ledger:
    """Opens the ledger of a folder.

    Raises:
      UserError: the folder holds runs of another config.
    """
    from resnet_jax.config import differences

    ledger = Ledger(workdir / 'ledger.jsonl')
    for cell in cells:
        stored = ledger.rows.get(cell.name, {}).get('config')
        if stored and (changed := differences(cell.config, stored)):
            raise UserError(f'{workdir} holds a sweep of another config ({cell.name}: '
                            f'{"; ".join(changed)}); choose another --workdir.')
    return ledger


def missing(cells: Sequence[Cell], ledger: Ledger) -> list[Cell]:
    """The cells whose runs are not finished."""
    def is_done(cell):
        row = ledger.rows.get(cell.name)
        return bool(row) and row['status'] == ledger_lib.FINISHED and (
            row['steps'] == cell.config.num_steps)

    return [cell for cell in cells if not is_done(cell)]


def _collect(cells: Sequence[Cell], workdir: storage.Path, ledger: Ledger) -> None:
    """Enters the runs that were started by hand, or whose sweep was killed."""
    for cell in cells:
        if ledger_lib.is_finished(cell, workdir / cell.name):
            ledger.put(ledger_lib.row(cell, workdir / cell.name))
            say(f'{cell.name} has been run already')


def _wait_for(lock, workdir: storage.Path) -> None:
    """Takes the lock of a folder.

    The runs inherit it, so that the ones that a killed sweep has left behind are waited for.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f'another sweep, or runs left over from one, are active in {workdir}; waiting')
        fcntl.flock(lock, fcntl.LOCK_EX)


class _Run:
    """A run that has been started."""

    def __init__(self, cell: Cell, workdir: storage.Path, share, lock):
        self.cell, self.share = cell, share
        self.folder = workdir / cell.name
        self._local = on_this_machine(workdir) / cell.name
        self._local.mkdir(exist_ok=True)
        self.started = time.monotonic()
        self.start_step = self.step()
        self.times_asked = 0  # to stop
        self.log = (self._local / 'log.txt').open('ab')
        self._from = self.log.tell()
        # A session of its own: Ctrl-C reaches it through the sweep alone, and so only once.
        self.process = subprocess.Popen(
            command(cell, workdir), stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, env={**os.environ, **share.environment},
            start_new_session=True, pass_fds=[lock.fileno()])
        restrict(self.process.pid, share.cores)

    def step(self) -> int:
        """The last step in its log."""
        return max((row['step'] for row in read_rows(self.folder / 'metrics.jsonl')), default=0)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def upload(self) -> None:
        """Copies its log to the bucket, if the sweep has one."""
        if self._local != self.folder:
            (self.folder / 'log.txt').write_bytes((self._local / 'log.txt').read_bytes())

    def error(self) -> str:
        """What it said last."""
        self.log.close()
        code = self.process.returncode
        said = (self._local / 'log.txt').read_bytes()[self._from:].decode(errors='replace')
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        # The sentence for a user; or the last line of a traceback.
        errors = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
        how = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'
        last = (errors or lines or ['no output'])[-1]
        return f'{last[:ERROR_LENGTH]} ({how})'


class _Runs:
    """The runs that are missing, on the shares of a machine."""

    def __init__(self, cells, total: int, workdir, ledger: Ledger, shares, machine, lock):
        self.total, self.workdir, self.ledger = total, workdir, ledger
        self.free = list(shares)
        self.lock = lock
        self.running: list[_Run] = []
        self.signal: signal.Signals | None = None
        self.times_asked = 0
        self.about = {'machine': {**machine.describe(), 'runs_at_a_time': len(shares)},
                      'versions': ledger_lib.versions(), 'commit': ledger_lib.commit()}
        self.progress = _Progress(cells)
        self.waiting = collections.deque(self._in_order(cells))

    def _in_order(self, cells: Sequence[Cell]) -> list[Cell]:
        """One seed after the other, and the longest runs of each first.

        Runs that differ in nothing but the seed share a compiled program, if they do not start at
        once; and short ones fill the gaps at the end.
        """
        seeds = list(dict.fromkeys(cell.config.seed for cell in cells))
        return sorted(cells, key=lambda cell: (seeds.index(cell.config.seed),
                                               -self.progress.left[cell.name]))

    def to_the_end(self) -> None:
        previous = {number: signal.signal(number, self._stop)
                    for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signal is not None:
            print(f'stopped by {self.signal.name}; run the same command again to resume.',
                  file=sys.stderr, flush=True)
            sys.exit(128 + self.signal)

    def _stop(self, number, frame) -> None:
        self.signal = signal.Signals(number)
        self.times_asked += 1

    def _loop(self) -> None:
        started = told = time.monotonic()
        while self.running or (self.waiting and self.signal is None):
            while self.free and self.waiting and self.signal is None:
                self._start()
            time.sleep(POLL_SECONDS)
            for run in self.running:  # here, and not in the handler: none is missed
                while run.times_asked < self.times_asked:
                    run.process.send_signal(self.signal)
                    run.times_asked += 1
            for run in [run for run in self.running if run.process.poll() is not None]:
                self._end(run)
            pause = max(PROGRESS_SECONDS, PROGRESS_SHARE * (told - started))
            if time.monotonic() - told > pause and self.running:
                told = time.monotonic()
                steps = ', '.join(f'{run.cell.name} at step {run.step():,}' for run in self.running)
                say(f'running: {steps}; {self._left()}')

    def _start(self) -> None:
        run = _Run(self.waiting.popleft(), self.workdir, self.free.pop(0), self.lock)
        self.running.append(run)
        self.progress.begins(run)

    def _end(self, run: _Run) -> None:
        self.running.remove(run)
        self.free.append(run.share)
        name, code = run.cell.name, run.process.returncode
        is_stopped = code != 0 and self.signal is not None
        error = run.error() if code and not is_stopped else None
        if not code and not ledger_lib.is_finished(run.cell, run.folder):
            error = 'it ended before its last step was evaluated and saved'
        status = (ledger_lib.STOPPED if is_stopped else
                  ledger_lib.FAILED if error else ledger_lib.FINISHED)
        row = ledger_lib.row(
            run.cell, run.folder, **self.about, status=status, error=error,
            seconds=round(self.ledger.seconds(name) + run.seconds(), 1))
        self.ledger.put(row)
        run.upload()
        if is_stopped:
            return
        self.progress.ends(run)
        result = f'failed: {error}' if error else _result(run.cell, row)
        say(f'[{self.total - len(self.waiting) - len(self.running)}/{self.total}] {name}  {result}'
            f'{"; " + self._left() if self.waiting or self.running else ""}')

    def _left(self) -> str:
        seconds = self.progress.seconds_left(self.running)
        return 'time left not known yet' if seconds is None else f'about {duration(seconds)} left'


def _result(cell: Cell, row: Row) -> str:
    """Such as 'top-1 error 1.68 %, best 1.50 %, 60 s'."""
    from resnet_jax.tasks import get

    headline = get(cell.config.task).headline
    name = ledger_lib.column(headline)
    last, best = (f'{row[f"{kind}_{name}"]:.2f}{headline.unit}' for kind in ('final', 'best'))
    return f'{headline.name} {last}, best {best}, {row["seconds"]:.0f} s'


def step_costs(cells: Sequence[Cell]) -> dict[str, int]:
    """Multiply-adds of a training step of each cell, by its name."""
    from resnet_jax.training.costs import summarize

    by_model = {}
    for cell in cells:
        model = cell.config.model.to_json()
        if model not in by_model:
            by_model[model] = summarize(grid_lib.looped(cell.config))['multiply_adds']
    return {cell.name: by_model[cell.config.model.to_json()] * cell.config.batch_size
            for cell in cells}


class _Progress:
    """The time left, from the multiply-adds that are done and that are not."""

    def __init__(self, cells: Sequence[Cell]):
        self._cost = step_costs(cells)
        self.left = {cell.name: cell.config.num_steps * self._cost[cell.name] for cell in cells}
        self._done = 0.0
        self._from: dict[str, int] = {}
        self._started = time.monotonic()

    def begins(self, run: _Run) -> None:
        self._from[run.cell.name] = run.start_step

    def ends(self, run: _Run) -> None:
        self._done += self._work(run)
        del self.left[run.cell.name]

    def _work(self, run: _Run) -> float:
        return (run.step() - self._from[run.cell.name]) * self._cost[run.cell.name]

    def seconds_left(self, running: Sequence[_Run]) -> float | None:
        done = self._done + sum(self._work(run) for run in running)
        under_way = sum(run.step() * self._cost[run.cell.name] for run in running)
        if done <= 0:
            return None
        return (sum(self.left.values()) - under_way) / done * (time.monotonic() - self._started)


def fail_if_any(rows: Sequence[Row], workdir: storage.Path) -> None:
    """Raises UserError if a run failed."""
    failed = [row for row in rows if row['status'] == ledger_lib.FAILED]
    if failed:
        raise UserError(
            f'{len(failed)} of {len(rows)} runs failed, the first, {failed[0]["run"]}, with: '
            f'{failed[0]["error"]} Run the same command to try them again; see '
            f'{workdir}/RUN/log.txt.')
