"""Two processes, one of which is stopped or fails while both evaluate."""

import re
import shutil
import signal

import pytest

from resnet_jax.training import loop
from tests import tiny
from tests.distributed.test_processes import Job
from tests.training import test_faults
from tests.training.test_train import arrays, assert_same_bits, rows

STOPS = '''
import os
import pathlib
import time
import jax
import pytest
from resnet_jax import cli
from resnet_jax.distributed import processes
from resnet_jax.training import loop
from tests.training.test_faults import Places, build_once
from tests.training.test_faults_of_processes import PLACES, SECONDS, SIGNALS, config

PROCESSES = cli.process_flags()

def run(folder, place, strike):
    def reached(*where):
        if where == place and jax.process_index() == 1:
            strike()

    with pytest.MonkeyPatch.context() as patch:
        Places(patch, reached, config().eval.batch_size)
        try:
            loop.train(config(), folder)
        except loop.Stopped as stopped:
            print(stopped)

def fail():
    raise ZeroDivisionError('injected')

def stop(number):
    os.kill(os.getpid(), number)
    time.sleep(SECONDS)

def main(arguments):
    folder, name = pathlib.Path(arguments[1]), arguments[2]
    with processes.job(*(flag.value for flag in PROCESSES)), pytest.MonkeyPatch.context() as patch:
        build_once(patch, {})
        loop.train(config(), folder / f'straight {name}')
        run(folder / name, PLACES[name], lambda: stop(SIGNALS[name]))
        print('evaluated', (folder / name / 'checkpoints/4/evaluation.json').exists())
        loop.train(config(), folder / name)
        if name == 'evaluation':
            run(folder / 'failed', PLACES[name], fail)

cli.run(main, takes_files=True)
'''
pytestmark = pytest.mark.slow
PLACES = {'recalibration': ('recalibration', 2), 'evaluation': ('evaluation', (1, 5))}
SIGNALS = {'recalibration': signal.SIGINT, 'evaluation': signal.SIGTERM}
SECONDS = 3  # that a process waits after a signal; JAX looks for signals once per second


def config():
    """Four steps on all devices, with 20 batches of recalibration and 38 of evaluation."""
    config = tiny.config()
    config.mesh.data = -1
    config.num_steps = 4
    config.log.every_steps = 1
    config.eval.every_steps = config.checkpoint.every_steps = None
    config.eval.batch_size, config.eval.recalibrate_batches = 8, 20
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('faults')


@pytest.fixture(scope='module')
def jobs(folder, commands):
    """A job for each place and how it ended; JAX agrees on one signal in each."""
    jobs = {name: Job(commands, '-c', STOPS, folder, name) for name in PLACES}
    return {name: (job, job.wait()) for name, job in jobs.items()}


@pytest.mark.parametrize('name', PLACES)
def test_a_signal_to_one_process_stops_both_while_they_evaluate(jobs, folder, name):
    for process in range(2):
        said = [line for line in jobs[name][0].said(process)
                if line.startswith(('stopped', 'evaluated'))]
        assert said == [
            f'stopped by {SIGNALS[name].name}; checkpoint saved at step 4. Run the same command '
            'again to resume.', 'evaluated False']
    straight = folder / f'straight {name}'
    assert_same_bits(arrays(folder / name, 4), arrays(straight, 4))
    assert_same_bits(arrays(folder / name, 4, 'recalibrated'), arrays(straight, 4, 'recalibrated'))
    assert test_faults.measured(folder / name) == test_faults.measured(straight)
    assert rows(folder / name)[-1]['eval/count'] == 297


def test_an_error_of_one_process_in_the_evaluation_loses_no_step(jobs, folder, tmp_path, capsys):
    (job, statuses), straight = jobs['evaluation'], folder / 'straight evaluation'
    assert statuses == [1, 1]
    assert 'ZeroDivisionError: injected' in job.errors(1)
    assert re.search(r'process 1 on \S+ stopped: ZeroDivisionError: injected', job.errors(0))
    assert_same_bits(arrays(folder / 'failed', 4), arrays(straight, 4))
    workdir = shutil.copytree(folder / 'failed', tmp_path / 'resumed')
    values = loop.train(config(), workdir)  # one process of eight devices
    assert 'resuming from step 4 ' in capsys.readouterr().out
    expected = rows(straight)[-1]
    assert values['eval/loss'] == pytest.approx(expected['eval/loss'], rel=1e-4)
