"""Checkpoints at the interval that measured times ask for."""

import errno
import itertools
import os
import types

import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import log, loop, workdir
from resnet_jax.training.interval import Interval, Times, steps_between
from resnet_jax.training.log import StepLog
from tests import tiny
from tests.distributed.test_processes import Job
from tests.training.test_train import arrays, assert_same_bits

JOB = '''
import pathlib
import jax
import pytest
from resnet_jax import cli
from resnet_jax.distributed import processes
from resnet_jax.training import interval, loop
from tests.distributed.test_processes import config

PROCESSES = cli.process_flags()

def main(arguments):
    seen = []
    class Seen(interval.Interval):
        def note_speed(self, step, step_seconds):
            # Steps take three times as long by the clock of process 1, and writes ten times.
            self.own = 4.0 * (1 + 2 * jax.process_index())
            super().note_speed(step, self.own)

        def choose(self, step, save, write):
            own = interval.Times(self.own, 0.0, 10.0 * (1 + 9 * jax.process_index()))
            line = super().choose(step, own.save, own.write)
            seen.append((step, self.every, interval.steps_between(own)))
            return line

    with processes.job(*(flag.value for flag in PROCESSES)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'Interval', Seen)
        loop.train(config(num_steps=40, **{'checkpoint.every_steps': 0}),
                   pathlib.Path(arguments[1]))
        print('seen', *seen, flush=True)

cli.run(main, takes_files=True)
'''


@pytest.mark.parametrize(('times', 'per_call', 'steps'), [
    # sqrt(2 x 0.2 x 86,400) = 185.9 s are 619.7 steps.
    (Times(step=0.3, save=0.2, write=2), 1, 1000),
    (Times(step=0.3, save=0.2, write=2), 7, 700),
    # Young's rule says 1,859 s; 1 % of the time, 2,000 s: 6,667 steps.
    (Times(step=0.3, save=20, write=60), 1, 10_000),
    # A write takes 50 s: not more often than every 100 s, 100,000 steps.
    (Times(step=0.001, save=0.001, write=50), 1, 100_000),
    # docs/checkpoints.md: 293.9 s are 9,185 steps.
    (Times(step=0.032, save=0.5, write=10), 1, 10_000),
    # Steps of ten minutes: each.
    (Times(step=600, save=0.2, write=2), 1, 1)])
def test_the_interval_follows_from_the_times(times, per_call, steps):
    assert steps_between(times, per_call) == steps


def test_times_that_differ_by_a_tenth_give_the_same_interval():
    found = {steps_between(Times(0.3 * a, 0.2 * b, 2.0)) for a in (0.9, 1.0, 1.1)
             for b in (0.9, 1.0, 1.1)}
    assert found == {1000}


def clocked(monkeypatch, first_steps=()):
    """A clock on which a step takes 1 s after these first ones, a save 0.5 ms, its write 4 s."""
    clock = types.SimpleNamespace(now=0.0)
    times = types.SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)

    def taking(owner, name, seconds):
        original = getattr(owner, name)

        def wrapped(*arguments):
            clock.now += next(seconds)
            return original(*arguments)
        monkeypatch.setattr(owner, name, wrapped)

    for module in (log, loop):
        monkeypatch.setattr(module, 'time', times)
    taking(StepLog, 'add', itertools.chain(first_steps, itertools.repeat(1)))
    taking(workdir.Record, 'save', itertools.repeat(0.0005))
    taking(workdir.Record, 'wait', itertools.repeat(4))


def saved_by(folder):
    return sorted(int(path.name) for path in (folder / 'checkpoints').iterdir())


def automatic():
    config = tiny.config()
    config.num_steps, config.eval.every_steps = 100, None
    config.checkpoint.update(every_steps=0, keep_last=1000)
    return config


@pytest.mark.slow
def test_the_first_checkpoint_comes_after_a_minute_and_sets_the_interval_of_the_others(
        monkeypatch, tmp_path, capsys):
    clocked(monkeypatch)
    config = automatic()
    loop.train(config, tmp_path / 'run')
    # Ten steps, a minute, and then every sqrt(2 x 0.0005 x 86,400) = 9.3 s.
    assert saved_by(tmp_path / 'run') == [70, 80, 90, 100]
    assert [line for line in capsys.readouterr().out.splitlines() if 'checkpoints' in line] == [
        'checkpoints every 10 steps (0:00:10), which costs 0.005 % of the time: a step takes 1 s, '
        "a save 0.0005 s, its write 4 s in the background; Young's rule for a failure every 24 h"]

    config.num_steps = 200
    loop.train(config, tmp_path / 'run')
    assert saved_by(tmp_path / 'run') == [70, 80, 90, 100, 170, 180, 190, 200]
    config.checkpoint.every_steps = None
    loop.train(config, tmp_path / 'straight')
    assert saved_by(tmp_path / 'straight') == [200]
    assert_same_bits(arrays(tmp_path / 'run', 200), arrays(tmp_path / 'straight', 200))


def test_an_interval_that_is_set_holds_and_nothing_is_timed(monkeypatch, tmp_path, capsys):
    clocked(monkeypatch)
    config = automatic()
    config.checkpoint.every_steps = 40
    loop.train(config, tmp_path)
    assert saved_by(tmp_path) == [40, 80, 100]
    assert 'checkpoints every' not in capsys.readouterr().out


def test_the_interval_follows_steps_that_are_slow_only_at_first(monkeypatch, tmp_path, capsys):
    clocked(monkeypatch, [30] * 14)  # such as while shards are copied
    config = automatic()
    config.num_steps = 30
    loop.train(config, tmp_path)
    # One step, two of 30 s, and each, which takes more than 9.3 s; the first of 1 s ends this.
    assert saved_by(tmp_path) == [*range(3, 16), 20, 30]
    lines = [line for line in capsys.readouterr().out.splitlines() if 'checkpoints' in line]
    assert [line.partition(', which')[0] for line in lines] == [
        'checkpoints every 1 steps (0:00:30)', 'checkpoints every 10 steps (0:00:10)']


@pytest.mark.parametrize(('seconds', 'due'), [(5.9, 21), (7.0, 10), (30.0, 3), (600.0, 2)])
def test_slow_steps_do_not_delay_the_first_checkpoint(seconds, due):
    saves = Interval(automatic(), 0)
    steps = [step for step in range(1, due + 1) if saves.asks_for_speed(step)
             and not saves.note_speed(step, seconds)]
    assert steps == ([1, 10, 21] if seconds < 6 else [1, due])
    assert [saves.is_due(step) for step in (due - 1, due)] == [False, True]


def test_the_last_step_tells_no_interval_and_is_not_timed():
    saves = Interval(automatic(), 0)
    saves.note_speed(10, 1.5)  # the first one is due at step 50
    assert saves.asks_for_times(99) and not saves.asks_for_times(100)
    saves.choose(50, 0.0005, 1.0)  # every 9.3 s
    for step, seconds, tells in ((99, 0.1, True), (100, 1.5, False)):
        saves.note_speed(step, seconds)
        assert bool(saves.saved(step)) == tells
    assert saves.every == 10


def test_a_disk_that_is_full_at_the_checkpoint_that_is_timed_is_one_sentence(
        monkeypatch, tmp_path):
    clocked(monkeypatch)
    original, waits = workdir.Record.wait, itertools.count()

    def wait(record):
        original(record)
        if next(waits) == 1:  # until its own save is written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr(workdir.Record, 'wait', wait)
    with pytest.raises(UserError, match=r'No space left on device\. .* Make space, and run'):
        loop.train(automatic(), tmp_path)


def test_times_of_minutes_are_written_in_full():
    saves = Interval(automatic(), 0)
    saves.note_speed(10, 1200.0)
    assert saves.choose(11, 150.0, 3600.0).endswith(
        'every 20 steps (6:40:00), which costs 0.62 % of the time: a step takes 1,200 s, a save '
        "150 s, its write 3,600 s in the background; Young's rule for a failure every 24 h")


# After 30 steps, a minute; then every 294 s: 420, 294 and 59 steps, which are rounded up to 30
# times 20, 10 and 2.
@pytest.mark.parametrize(('step_seconds', 'first', 'every'),
                         [(0.7, 120, 600), (1.0, 90, 300), (5.0, 60, 60)])
def test_the_clock_does_not_change_the_calls_of_several_steps(step_seconds, first, every):
    config = automatic()
    config.update_from_flattened_dict({
        'num_steps': 2000, 'steps_per_call': 30, 'log.every_steps': 500})
    step, saves, saved, ends = 0, Interval(config, 0), [], []
    while count := loop.steps_of_next_call(config, step, saves):
        step += count
        ends.append(step)
        if saves.asks_for_speed(step):
            saves.note_speed(step, step_seconds)
        if saves.is_due(step):
            saved.append(step)
            if saves.asks_for_times(step):
                saves.choose(step, 0.5, 1.0)
            saves.saved(step)
    # Calls of 30 steps up to a line of the log, and single steps before it.
    assert ends == [line + end for line in range(0, 2000, 500)
                    for end in (*range(30, 481, 30), *range(481, 501))]
    # Checkpoints come at the end of the call in which they are due.
    assert saved == [first, *(next(end for end in ends if end >= due)
                              for due in range(every, 2001, every) if due > first)]


@pytest.mark.slow
def test_two_processes_with_different_clocks_save_at_the_same_steps(commands, tmp_path):
    script = tmp_path / 'job.py'
    script.write_text(JOB)
    job = Job(commands, str(script), str(tmp_path / 'run'))
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    seen = [next(line for line in job.said(i) if line.startswith('seen')) for i in (0, 1)]
    # 60 s of steps of 4 s after the tenth step, and then every 2 x 10 s. Process 1 alone would take
    # 2 x 100 s of steps of 12 s, 16.7 and thus 20 steps.
    assert seen == ['seen (25, 5, 5)', 'seen (25, 5, 20)']
    assert saved_by(tmp_path / 'run') == [25, 30, 35, 40]
