"""Shared by the benchmarks: interleaved measurement of several programs, and reporting.

Each contender runs in its own process, and all are bound to the same cores. Their passes are
interleaved, so that other load on the machine affects all of them alike. Times are medians over the
passes; ratios are computed within a turn.
"""

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from resnet_jax.distributed.cores import available_cores, core_numbers, restrict

PAUSE = 0.3  # seconds
NO_PYTORCH = "PyTorch is not installed: pip install -e '.[torch]'"

Run = Callable[[int], dict[str, float]]  # units of work -> what was measured


class NotRun(Exception):  # noqa: N818
    """A contender cannot take part; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a contender.

    Attributes:
      facts: what it reports about itself.
      passes: what was measured in each turn.
      not_run: why there are no passes.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: list[dict[str, float]] = dataclasses.field(default_factory=list)
    not_run: str | None = None

    def median(self, name: str) -> float:
        return statistics.median(one[name] for one in self.passes)


class Process:
    """A contender in a process of its own, that waits for its turn."""

    def __init__(self, name: str, contender: Callable[..., tuple[dict, Run]], arguments: Sequence,
                 cores: Sequence[int]):
        context = multiprocessing.get_context('spawn')
        self._name = name
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, contender, tuple(arguments), tuple(cores)), daemon=False)
        self._process.start()
        other.close()

    def receive(self, limit: float | None = None) -> Any:
        """What the process sends next.

        Raises:
          NotRun: it cannot take part, or has not answered within this many seconds.
          RuntimeError: it failed; it has told how.
        """
        if not self._connection.poll(limit):
            self._process.kill()
            raise NotRun(f'not done after {limit:g} s')
        try:
            kind, content = self._connection.recv()
        except EOFError:
            raise RuntimeError(f'the contender {self._name!r} failed.') from None
        if kind == 'not run':
            raise NotRun(content)
        return content

    def take_turn(self, units: int, limit: float | None = None) -> dict[str, float]:
        """Runs one pass of this many units of work; see `receive`."""
        self._connection.send(units)
        return self.receive(limit)

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection, contender, arguments, cores) -> None:
    if cores:
        restrict(0, cores)
    # Processes share an accelerator: none may take all of its memory in advance.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        facts, run = contender(*arguments)
        _settle()
        connection.send(('ready', facts))
        while True:
            measured = run(connection.recv())
            _settle()
            connection.send(('measured', measured))
    except EOFError:
        pass
    except NotRun as reason:
        connection.send(('not run', str(reason)))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever the contender still has running


def processor_seconds() -> float:
    """Processor time of this process and of its workers."""
    ticks = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        # The name in brackets may hold spaces; user and system time are fields 14 and 15.
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf('SC_CLK_TCK')


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, of the clock and of the processors, that a piece of work takes."""
    begin, begin_cpu = time.perf_counter(), processor_seconds()
    work()
    return {'seconds': time.perf_counter() - begin,
            'processor_seconds': processor_seconds() - begin_cpu}


def passes(work: Callable[[], float]) -> tuple[dict[str, Any], Run]:
    """The result of the first call as a fact, for comparison, and the passes of this work."""
    result = work()

    def run(units: int) -> dict[str, float]:
        measured = timed(lambda: [work() for _ in range(units)])
        return {name: seconds / units for name, seconds in measured.items()}

    return {'result': result}, run


def _settle() -> None:
    """Waits until work in advance is done and threads sleep: others are not to be disturbed."""
    before = float('-inf')
    while (now := processor_seconds()) - before > 0.1 * PAUSE:
        before = now
        time.sleep(PAUSE)


def take_turns(contenders: Mapping[str, Sequence], repeats: int, units: int,
               cores: Sequence[int] | None = None) -> dict[str, Outcome]:
    """Lets the contenders take turns.

    Args:
      contenders: name: (function, its arguments …). In its process, the function returns what the
        contender reports about itself, and what makes a pass; or raises NotRun.
      repeats: passes of each that are counted; one goes before, to warm up.
      units: units of work per pass.
      cores: that each is bound to; None: all there are.
    """
    cores = core_numbers() if cores is None else cores
    outcomes, processes = {}, {}
    try:
        for name, (contender, *arguments) in contenders.items():
            # One after the other: what they compile before they are ready takes all cores.
            processes[name] = Process(name, contender, arguments, cores)
            try:
                outcomes[name] = Outcome(processes[name].receive())
            except NotRun as reason:
                outcomes[name] = Outcome(not_run=str(reason))
                processes.pop(name).close()
            progress(f'{name}: ' + (outcomes[name].not_run or 'ready'))
        for i in range(repeats + 1):
            for name, process in processes.items():
                measured = process.take_turn(units)
                if i:
                    outcomes[name].passes.append(measured)
            progress(f'pass {i} of {repeats}')
    finally:
        for process in processes.values():
            process.close()
    return outcomes


def ratio(one: Outcome, other: Outcome, name: str) -> float:
    """The median over the turns of what was measured of one, over the same of the other.

    It is nan if one of the other's passes was too short for the clock.
    """
    pairs = [(a[name], b[name]) for a, b in zip(one.passes, other.passes, strict=True)]
    return statistics.median(a / b for a, b in pairs) if all(b for _, b in pairs) else math.nan


def with_made_up_images(config):
    """The config, its images replaced by made-up ones on the devices; the digits are there already.

    Crops that only the host can make are left out.
    """
    config = copy.deepcopy(config)
    if config.data.source != 'digits':
        config.data.source, config.data.channels = 'synthetic', 3
    config.data.train_crop, config.data.randaugment_layers = 'pad', 0
    config.data.pipeline = 'resident'
    return config


def progress(message: str) -> None:
    """A line for whoever waits; the result alone goes to stdout."""
    print(message, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for people: Markdown, the first column to the left and the others to the right."""
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """The result for programs, with what it was measured by; nothing where the path is empty."""
    if not path:
        return
    from resnet_jax.output import write_whole

    versions = {}
    for package in ('jax', 'jaxlib', 'torch'):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    write_whole(pathlib.Path(path), json.dumps({
        'command': shlex.join(['python', *sys.argv]), 'python': platform.python_version(),
        'versions': versions, 'cores': available_cores(), **content}, indent=1) + '\n')
