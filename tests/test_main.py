"""The commands from outside: killed and started again."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from resnet_jax.training import workdir
from tests.test_train import arrays, assert_same_bits, logged, points, rows

ROOT = pathlib.Path(__file__).parent.parent
RUN = ['--config=configs/digits_r20.py', '--config.model.depth=8', '--config.model.width=8',
       '--config.batch_size=64', '--config.num_steps=600',
       '--config.schedule.name=constant', '--config.checkpoint.every_steps=40',
       '--config.eval.every_steps=200', '--config.log.every_steps=20']


def start(*args, module='main', env=None):
    environment = {**os.environ, **(env or {})}
    environment.pop('XLA_FLAGS', None)  # one device
    return subprocess.Popen(
        [sys.executable, '-m', f'resnet_jax.{module}', *args], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp('straight')
    process = start(*RUN, f'--workdir={folder}', f'--config.compilation_cache={folder}/cache')
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert 'ETA' in output and 'images/s' in output and 'waiting for data' in output
    return folder


@pytest.mark.parametrize(('number', 'seed'), [
    (signal.SIGKILL, 1), pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
    (signal.SIGTERM, 3)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
        straight, tmp_path, number, seed):
    args = [*RUN, f'--workdir={tmp_path}', f'--config.compilation_cache={straight}/cache']
    process = start(*args)
    checkpoints = tmp_path / 'checkpoints'
    wait_for(lambda: any(path.name.isdigit() for path in checkpoints.glob('*')), process)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(number)
    process.wait()
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert 'Run the same command again to resume' in process.stderr.read()
    process = start(*args)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert 'resuming from step' in output
    assert_same_bits(arrays(tmp_path, 600), arrays(straight, 600))
    steps = [row['step'] for row in rows(tmp_path) if 'train/loss' in row]
    assert steps == sorted(set(steps)) and steps[-1] == 600
    assert rows(tmp_path)[-1] == rows(straight)[-1]
    assert points(tmp_path) == logged(tmp_path)


def test_a_folder_in_use_and_a_cut_checkpoint_end_in_one_sentence_each(straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / 'run', ignore=shutil.ignore_patterns('cache'))
    args = [*RUN, f'--workdir={folder}', '--config.num_steps=640']
    with workdir.locked(folder):
        process = start(*args)
        errors = process.communicate()[1].splitlines()
        assert process.returncode == 1 and len(errors) == 1
        assert f'{folder} is in use by process {os.getpid()} on ' in errors[0]
    for path in (folder / 'checkpoints' / '600' / 'default').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    process = start(*args)
    errors = process.communicate()[1].splitlines()
    assert process.returncode == 1 and len(errors) <= 5
    assert errors[-1].startswith(f'error: the checkpoint {folder}/checkpoints/600 is damaged')


def test_training_imports_neither_tensorflow_nor_torch(tmp_path):
    code = f'''
import pathlib, sys
import resnet_jax.main, resnet_jax.summary
from resnet_jax.training import loop
from tests import tiny
config = tiny.config()
config.num_steps = 1
loop.train(config, pathlib.Path({str(tmp_path)!r}))
imported = {{name.split('.')[0] for name in sys.modules}}
print(sorted(imported & {{'tensorflow', 'torch'}}))
'''
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == '[]'


def test_summary_prints_json_and_a_table():
    args = ['--config=configs/cifar10_r20.py']
    as_json, as_table = start(*args, '--json', module='summary'), start(*args, module='summary')
    summary = json.loads(as_json.communicate()[0])
    assert {'parameters', 'multiply_adds', 'stages', 'memory'} <= summary.keys()
    table = as_table.communicate()[0]
    assert '269,722' in table and '40,551,040' in table and 'stage3         8 x 8 x 64' in table
