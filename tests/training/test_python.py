"""`resnet_jax.train` is the command in Python: the same run, the same sentences, no exit."""

import doctest
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import UserError
from resnet_jax.training import loop, start
from resnet_jax.training.start import Trained
from resnet_jax.xla import flags as xla_flags
from tests import runs, tiny, xla_options
from tests.training.test_faults import build_once
from tests.training.test_train import arrays, assert_same_bits, rows

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'configs/digits_r20.py'
FIELDS = {'model.depth': 8, 'model.width': 8, 'batch_size': 64, 'num_steps': 20,
          'schedule.name': 'constant', 'schedule.warmup': 'none', 'eval.every_steps': 20,
          'log.every_steps': 10, 'checkpoint.every_steps': None, 'mesh.data': 1}


@pytest.fixture(autouse=True)
def within_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return resnet_jax.train(ROOT / CONFIG, tmp_path_factory.mktemp('python'), FIELDS)


@pytest.mark.slow  # that of the README is as good
def test_the_example_of_train_is_true(tmp_path):
    test = doctest.DocTestFinder().find(
        resnet_jax.train, globs={'resnet_jax': resnet_jax, 'np': np, 'workdir': tmp_path})[0]
    assert len(test.examples) == 5
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.slow
def test_python_and_the_command_end_with_the_same_bits(tmp_path, commands):
    process = commands.run(
        '-c', f'import resnet_jax; resnet_jax.train({CONFIG!r}, {str(tmp_path / "python")!r}, '
        f'{FIELDS})', env={'XLA_FLAGS': xla_options.quick(devices=8)})
    assert process.status == 0, process.errors
    process = commands.run(
        'resnet_jax.main', f'--config={CONFIG}', f'--workdir={tmp_path}/command',
        *(f'--config.{name}={value}' for name, value in FIELDS.items()),
        env={'XLA_FLAGS': xla_options.quick(devices=8)})
    assert process.status == 0, process.errors
    assert_same_bits(*(arrays(tmp_path / name, 20) for name in ('command', 'python')))
    assert rows(tmp_path / 'command')[-1] == rows(tmp_path / 'python')[-1]  # the evaluation


def test_what_training_returns_predicts_and_shows_its_numbers(trained):
    assert trained.metrics['eval/count'] == 297
    assert [row['step'] for row in trained.rows] == [10, 20, 20]
    assert trained.rows[-1]['eval/top1_error'] == trained.metrics['eval/top1_error']
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(trained.network.predict(images),
                                  resnet_jax.load(trained.workdir).predict(images))


def test_called_again_it_has_nothing_to_do(trained, capsys):
    again = resnet_jax.train(CONFIG, trained.workdir, FIELDS)
    assert 'nothing to do' in capsys.readouterr().out
    assert again.metrics == trained.metrics


@pytest.mark.parametrize(('config', 'fields', 'sentence'), [
    (CONFIG, {'model.dept': 8}, 'the config has no field model.dept; did you mean model.depth?'),
    (CONFIG, {'model': 8}, 'model is a section of the config; set one of its fields.'),
    (CONFIG, {'num_steps': 'many'}, "num_steps='many' has the wrong type; the config has 450."),
    (CONFIG, {'model.depth': 21}, 'depth'),
    (CONFIG, {'xla_preset': 'cup'}, 'xla_preset must be one of'),
    (f'{CONFIG}:r20', {}, f'{CONFIG} takes no argument; leave out :r20.'),
    ('configs/digits_r21.py', {}, 'there is no config file configs/digits_r21.py; did you mean')])
def test_a_wrong_config_is_refused_in_the_sentence_of_the_command(
        config, fields, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        resnet_jax.train(config, tmp_path / 'run', fields)
    assert sentence in str(caught.value)
    assert not (tmp_path / 'run').exists()


def test_a_config_object_needs_a_folder():
    with pytest.raises(UserError, match='give the folder of the run'):
        resnet_jax.train(tiny.config())


def test_without_a_folder_it_is_that_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(start, 'train', lambda config, workdir: Trained(workdir, {}))
    assert resnet_jax.train(CONFIG).workdir == pathlib.Path('runs/digits_r20')
    pod = resnet_jax.train('configs/imagenet_pod.py:r152,v5e-256')
    assert pod.workdir == pathlib.Path('runs/imagenet_pod_r152_v5e-256')


def test_epochs_that_have_no_effect_are_warned_of(tmp_path, capsys):
    with pytest.raises(UserError, match='depth'):
        resnet_jax.train(CONFIG, tmp_path, {'num_epochs': 3, 'model.depth': 21})
    assert 'warning: num_steps=450 is set, so that num_epochs=3 has no effect' in (
        capsys.readouterr().err)


def test_an_interrupt_saves_a_checkpoint_and_the_next_call_resumes(trained, tmp_path, monkeypatch):
    build_once(monkeypatch, {})
    with monkeypatch.context() as context:
        calls = runs.stop_at(context, 7)
        context.setattr(os, 'kill', lambda pid, number: signal.raise_signal(signal.SIGINT))
        with pytest.raises(loop.Stopped, match='stopped by SIGINT; checkpoint saved at step 7'):
            resnet_jax.train(CONFIG, tmp_path, FIELDS)
        assert len(calls) == 7
    resnet_jax.train(CONFIG, tmp_path, FIELDS)
    assert_same_bits(arrays(tmp_path, 20), arrays(trained.workdir, 20))


def test_it_trains_where_jax_has_started_and_leaves_the_config_and_gives_no_option_twice(tmp_path):
    assert jax.device_count() == 8  # started
    config = tiny.config()
    before = config.to_json()
    resnet_jax.train(config, tmp_path, {'num_steps': 1})
    assert config.to_json() == before
    start.prepare(config)
    options = os.environ['XLA_FLAGS'].split()
    for flag in xla_flags.PRESETS['cpu'].flags:
        assert options.count(flag.text) <= 1
