"""The commands from outside: killed and started again."""

import json
import os
import pathlib
import random
import shutil
import signal
import time

import pytest

from resnet_jax.training import workdir
from tests import xla_options
from tests.training.test_train import arrays, assert_same_bits, logged, points, rows

ROOT = pathlib.Path(__file__).parents[2]
RUN = ['--config=configs/digits_r20.py', '--config.model.depth=8', '--config.model.width=8',
       '--config.batch_size=64', '--config.num_steps=60',
       '--config.schedule.name=constant', '--config.checkpoint.every_steps=10',
       '--config.eval.every_steps=20', '--config.log.every_steps=5']
ONE_DEVICE = {'XLA_FLAGS': xla_options.quick(devices=1)}


@pytest.fixture(scope='module')
def straight(tmp_path_factory, commands):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp('straight')
    process = commands.run('resnet_jax.main', *RUN, f'--workdir={folder}', env=ONE_DEVICE)
    output = process.output
    assert process.status == 0, process.errors
    assert 'ETA' in output and 'images/s' in output and 'waiting for data' in output
    # Plain lines, as it is no terminal: of the first step, of those in the log, and of others if it
    # takes long.
    steps = [line.split()[1] for line in output.splitlines() if line.startswith('step ')]
    assert '\r' not in output and len(steps) == len(set(steps))
    assert {f'{step}/60' for step in (1, *range(5, 61, 5))} <= set(steps)
    return folder


@pytest.mark.parametrize(('number', 'seed'), [
    (signal.SIGKILL, 1), pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 3, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
        straight, tmp_path, commands, number, seed):
    args = ['resnet_jax.main', *RUN, f'--workdir={tmp_path}']
    process = commands.start(*args, env=ONE_DEVICE)
    checkpoints = tmp_path / 'checkpoints'
    process.until(lambda: any(path.name.isdigit() for path in checkpoints.glob('*')))
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(number)
    assert process.wait() == (-9 if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert 'Run the same command again to resume' in process.errors
    process = commands.run(*args, env=ONE_DEVICE)
    assert process.status == 0, process.errors
    assert 'resuming from step' in process.output
    assert_same_bits(arrays(tmp_path, 60), arrays(straight, 60))
    steps = [row['step'] for row in rows(tmp_path) if 'train/loss' in row]
    assert steps == sorted(set(steps)) and steps[-1] == 60
    assert rows(tmp_path)[-1] == rows(straight)[-1]
    assert points(tmp_path) == logged(tmp_path)


def test_a_folder_in_use_and_a_cut_checkpoint_end_in_one_sentence_each(
        straight, tmp_path, commands):
    folder = shutil.copytree(straight, tmp_path / 'run')
    args = ['resnet_jax.main', *RUN, f'--workdir={folder}', '--config.num_steps=80']
    with workdir.locked(folder):
        process = commands.run(*args, env=ONE_DEVICE)
        errors = process.errors.splitlines()
        assert process.status == 1 and len(errors) == 1
        assert f'{folder} is in use by process {os.getpid()} on ' in errors[0]
    for path in (folder / 'checkpoints' / '60' / 'default').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    process = commands.run(*args, env=ONE_DEVICE)
    errors = process.errors.splitlines()
    assert process.status == 1 and len(errors) <= 5
    assert errors[-1].startswith(f'error: the checkpoint {folder}/checkpoints/60 is damaged')


def test_training_imports_neither_tensorflow_nor_torch(tmp_path, commands):
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
    process = commands.run('-c', code)
    assert process.status == 0, process.errors
    assert process.output.splitlines()[-1] == '[]'


def test_summary_prints_json_and_a_table(commands):
    args = ['resnet_jax.summary', '--config=configs/cifar10_r20.py']
    summary = json.loads(commands.run(*args, '--json').output)
    assert {'parameters', 'multiply_adds', 'stages', 'memory'} <= summary.keys()
    table = commands.run(*args).output
    assert '269,722' in table and '40,551,040' in table and 'stage3         8 x 8 x 64' in table
