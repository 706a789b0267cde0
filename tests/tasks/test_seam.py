"""A task that the package does not know is trained, evaluated, stopped, resumed and predicted."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import tasks
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.tasks.loading import load_all
from resnet_jax.tasks.prediction import predictions
from resnet_jax.training import loop, step
from resnet_jax.training.costs import summarize
from resnet_jax.training.evaluation import evaluate
from resnet_jax.training.validation import Evaluator
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests import jitted, runs
from tests.conftest import ROOT
from tests.tasks import brightness, brightness_config, lamps
from tests.training.test_faults import build_once
from tests.weights.networks import store

CONFIG = ROOT / 'tests' / 'tasks' / 'brightness_config.py'


@pytest.fixture(scope='module')
def built():
    """What the runs on one device share; see `build_once`."""
    return {}


@pytest.fixture(scope='module')
def finished(tmp_path_factory, built):
    """A run that was never stopped, on one device."""
    workdir = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch:
        build_once(patch, built)
        loop.train(brightness_config.get_config(), workdir)
    return workdir


def evaluations(workdir):
    return {row['step']: row for row in read_rows(workdir / 'metrics.jsonl') if 'eval/r2' in row}


def assert_same_bits(workdir, other):
    mine, others = (stored.read(folder).variables for folder in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, mine, others)


def test_it_learns_and_the_best_checkpoint_has_the_highest_value(finished):
    found = evaluations(finished)
    assert list(found) == [50, 100, 150]
    assert found[150]['eval/count'] == 203
    best = max(found, key=lambda step: found[step]['eval/r2'])
    assert found[best]['eval/r2'] > 0.9
    kept = {int(folder.name) for folder in (finished / 'checkpoints').iterdir()}
    assert kept == {best, 150}
    logged = read_rows(finished / 'metrics.jsonl')
    assert {tag for row in logged for tag in row if 'error' in tag} == set()


def test_a_metric_that_is_no_sum_is_that_of_all_images(finished):
    network, test = resnet_jax.load(finished), lamps.create(None, 'test')
    truth, predicted = np.float64(test.targets['brightness']), network.predict(test.images)
    r2 = 1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert evaluations(finished)[150]['eval/r2'] == pytest.approx(r2, abs=1e-4)


@pytest.mark.parametrize('devices', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_gives_the_same_bits(
        devices, finished, built, tmp_path, monkeypatch):
    build_once(monkeypatch, built if devices == 1 else {})
    config = brightness_config.get_config()
    config.mesh.data = devices
    whole = finished
    if devices > 1:
        whole = tmp_path / 'whole'
        loop.train(config, whole)
    calls = runs.stop_at(monkeypatch, 27)
    with pytest.raises(loop.Stopped, match='checkpoint saved at step 27'):
        loop.train(config, tmp_path / 'run')
    loop.train(config, tmp_path / 'run')
    assert len(calls) == 150
    assert_same_bits(tmp_path / 'run', whole)
    assert evaluations(tmp_path / 'run') == evaluations(whole)


def test_it_is_evaluated_by_the_same_code_on_any_mesh(finished, capsys):
    config = brightness_config.get_config()
    config.mesh.data = 8
    # What is trained for, and what it starts from, is of no interest.
    config.task, config.data.image_size = 'classification', None
    config.init.checkpoint = '/nothing'
    for given in (None, config):
        report = evaluate([str(finished)], given, 0, {}, [])
        assert report.values == pytest.approx(
            {tag: value for tag, value in evaluations(finished)[150].items() if tag != 'step'},
            rel=1e-4)
        assert report.text.endswith('on 203 images') and 'r2 0.' in report.text
    told = capsys.readouterr()
    assert not told.out and 'compiled the evaluation step' in told.err  # stdout is for the result


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_could_not_be_measured_is_null(value, finished, monkeypatch):
    measured = {'eval/loss': 0.5, 'eval/r2': value, 'eval/count': 203}
    monkeypatch.setattr(Evaluator, 'evaluate', lambda *_: measured)
    values = evaluate([str(finished)], None, 0, {}, []).values
    assert values == {**measured, 'eval/r2': None}


def test_an_evaluation_that_a_signal_ends_is_one_sentence(finished, monkeypatch):
    monkeypatch.setattr(Evaluator, 'evaluate', lambda *_: None)
    with pytest.raises(UserError, match='stopped by a signal'):
        evaluate([str(finished)], None, 0, {}, [])


class TwoOutputs(ResNet):
    """As a detector has several heads."""

    def __call__(self, images, *, train):
        maps = self.features(images, train=train)
        return {'boxes': maps['stage2'], 'scores': self.classify(maps['stage3'])}


def test_a_network_of_several_outputs_is_summarised_and_applied(monkeypatch):
    network = TwoOutputs(BasicBlock, (1, 1, 1), stem_kind='cifar', width=2, num_classes=1)
    monkeypatch.setattr(brightness, 'TASK', dataclasses.replace(
        brightness.TASK, create_model=lambda config: network))
    config = brightness_config.get_config()
    assert summarize(config)['stages'][-2:] == [{'name': 'head/boxes', 'shape': [4, 4, 4]},
                                                {'name': 'head/scores', 'shape': [1]}]
    variables = jitted.init(network, jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
    plain = {'mean': np.zeros(1, np.float32), 'std': np.ones(1, np.float32)}
    loaded, images = brightness.Photometer(config, variables, plain), np.zeros((3, 8, 8, 1))
    assert loaded.model is network
    shapes = jax.tree.map(np.shape, (loaded.outputs(images), loaded.outputs(images[0])))
    assert shapes == ({'boxes': (3, 4, 4, 4), 'scores': (3, 1)},
                      {'boxes': (4, 4, 4), 'scores': (1,)})


def test_recalibration_applies_the_network_as_the_loss_does():
    """A detector's needs the boxes in training."""
    def loss(model, variables, batch, key, config):
        return 0.0, (model.bn_momentum, model.bn_frozen, batch['brightness']), {}

    network = TwoOutputs(BasicBlock, (1, 1, 1), stem_kind='cifar', bn_frozen=True)
    state = types.SimpleNamespace(eval_variables={})
    assert step.batch_statistics(
        state, {'brightness': 7}, task=dataclasses.replace(brightness.TASK, loss=loss),
        model=network, config=None) == (0.0, False, 7)


def test_options_and_ensembles_that_it_does_not_know_are_refused(finished):
    with pytest.raises(UserError, match='--protocol does not apply to the task tests'):
        evaluate([str(finished)], None, 0, {'protocol': 'ten_crop'}, ['protocol'])
    with pytest.raises(UserError, match='are evaluated one at a time'):
        evaluate([str(finished)] * 2, None, 0, {}, [])


def test_images_of_any_size_are_predicted(finished, tmp_path):
    image = lamps.create(None, 'test').images[0]
    Image.fromarray(np.repeat(image, 3, 2)).save(tmp_path / 'lamp.png')
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save(tmp_path / 'grey.png')
    network = resnet_jax.load(finished)
    predictor = brightness.TASK.predictor([network], {})
    files = [(str(tmp_path / name), None) for name in ('lamp.png', 'grey.png')]
    found = [answer.fields['brightness'] for _, answer in predictions(predictor, files)]
    seen = np.stack([image, np.full((8, 8, 1), 90, np.uint8)])
    assert found == pytest.approx(list(network.predict(seen)), abs=1e-5)


def test_networks_of_several_tasks_are_no_ensemble(tmp_path):
    for name, task in (('one', 'classification'), ('two', 'tests.tasks.brightness'),
                       ('three', 'not_installed.task')):
        store(tmp_path / name)
        file = tmp_path / name / 'config.json'
        file.write_text(json.dumps({**json.loads(file.read_text()), 'task': task}))
    with pytest.raises(UserError, match=r'one for classification, .*two for tests\.tasks\.bright'):
        load_all([tmp_path / 'one', tmp_path / 'two'])
    with pytest.raises(UserError, match=r'task names the module not_installed\.task, and Python'):
        load_all([tmp_path / 'three'])


def test_a_task_that_does_not_exist_is_one_sentence():
    assert tasks.get('tests.tasks.brightness') is brightness.TASK
    for name, told in (('clasification', 'Did you mean classification'),
                       ('.my_task', 'one of classification, detection, localization, '
                                    'localization_rcnn, or a module'),
                       ('no_such.module', 'Python finds no no_such: add its folder'),
                       ('tests.tasks.brightness_config', 'must be a module with TASK')):
        with pytest.raises(UserError, match=told):
            tasks.get(name)


@pytest.mark.slow
def test_the_ordinary_commands_run_it(finished, tmp_path):
    def command(name, *arguments):
        return [sys.executable, '-m', f'resnet_jax.{name}', *map(str, arguments)]

    train = command('main', f'--config={CONFIG}', f'--workdir={tmp_path}/run')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(train, stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if line.startswith('evaluation at step 50'):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate()
    assert process.returncode == 143

    def run(command):
        return subprocess.run(command, capture_output=True, text=True, check=True,
                              env=environment).stdout

    told = run(train)
    assert 'resuming from step' in told and 'done: R squared 0.' in told
    measured = evaluations(tmp_path / 'run')[150]
    assert measured['eval/r2'] == pytest.approx(evaluations(finished)[150]['eval/r2'], abs=0.02)
    values = json.loads(run(command('evaluate', f'--workdir={tmp_path}/run', '--json')))
    assert values['eval/r2'] == pytest.approx(measured['eval/r2'], rel=1e-4)
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(tmp_path / 'grey.png')
    told = run(command('predict', f'--checkpoint={tmp_path}/run', '--json', tmp_path / 'grey.png'))
    assert json.loads(told)['brightness'] == pytest.approx(200 / 255, abs=0.1)
