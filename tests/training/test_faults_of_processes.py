"""Two processes, one of which is stopped or fails while both evaluate."""

import re
import shutil

import pytest

from resnet_jax.training import loop as train
from tests import tiny
from tests.distributed.test_processes import Job
from tests.training import test_faults
from tests.training.test_train import arrays, assert_same_bits, rows

STOPS = '''
import os
import pathlib
import signal
import jax
import pytest
from resnet_jax import cli
from resnet_jax.distributed import processes
from resnet_jax.training import loop as train
from tests.training.test_faults import Places, build_once
from tests.training.test_faults_of_processes import PLACES, config

PROCESSES = cli.process_flags()

def run(folder, place, strike):
    def reached(*where):
        if where == place and jax.process_index() == 1:
            strike()

    with pytest.MonkeyPatch.context() as patch:
        Places(patch, reached, config().eval.batch_size)
        try:
            train.train(config(), folder)
        except train.Stopped as stopped:
            print(stopped)

def fail():
    raise ZeroDivisionError('injected')

def main(arguments):
    folder = pathlib.Path(arguments[1])
    with processes.job(*(flag.value for flag in PROCESSES)), pytest.MonkeyPatch.context() as patch:
        build_once(patch, {})
        train.train(config(), folder / 'straight')
        for name, place in PLACES.items():
            run(folder / name, place, lambda: os.kill(os.getpid(), signal.SIGTERM))
            print(name, 'evaluated', (folder / name / 'checkpoints/4/evaluation.json').exists())
            train.train(config(), folder / name)
        run(folder / 'failed', PLACES['evaluation'], fail)

cli.run(main, takes_files=True)
'''
pytestmark = pytest.mark.slow
PLACES = {'recalibration': ('recalibration', 2), 'evaluation': ('evaluation', (1, 5))}


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
def job(folder, commands):
    job = Job(commands, '-c', STOPS, folder)
    return job, job.wait()


def test_a_signal_to_one_process_stops_both_while_they_evaluate(job, folder):
    for process in range(2):
        said = [line for line in job[0].said(process) if 'SIGTERM' in line or ' evaluated ' in line]
        assert said == [
            line for name in PLACES for line in (
                'stopped by SIGTERM; checkpoint saved at step 4. Run the same command again to '
                'resume.', f'{name} evaluated False')]
    for name in PLACES:
        assert_same_bits(arrays(folder / name, 4), arrays(folder / 'straight', 4))
        assert_same_bits(arrays(folder / name, 4, 'recalibrated'),
                         arrays(folder / 'straight', 4, 'recalibrated'))
        assert test_faults.measured(folder / name) == test_faults.measured(folder / 'straight')
        assert rows(folder / name)[-1]['eval/count'] == 297


def test_an_error_of_one_process_in_the_evaluation_loses_no_step(job, folder, tmp_path, capsys):
    assert job[1] == [1, 1]
    assert 'ZeroDivisionError: injected' in job[0].errors(1)
    assert re.search(r'process 1 on \S+ stopped: ZeroDivisionError: injected', job[0].errors(0))
    assert_same_bits(arrays(folder / 'failed', 4), arrays(folder / 'straight', 4))
    workdir = shutil.copytree(folder / 'failed', tmp_path / 'resumed')
    values = train.train(config(), workdir)  # one process of eight devices
    assert 'resuming from step 4 ' in capsys.readouterr().out
    expected = rows(folder / 'straight')[-1]
    assert values['eval/loss'] == pytest.approx(expected['eval/loss'], rel=1e-4)
