"""A run that is interrupted anywhere, started again, ends as if it had never been."""

import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from resnet_jax.data.resident import Resident
from resnet_jax.errors import UserError
from resnet_jax.training import loop, validation
from resnet_jax.training.log import StepLog
from resnet_jax.training.writers import MetricsWriter
from resnet_jax.weights.checkpoint import read_weights
from resnet_jax.weights.checkpoints import Checkpoints
from tests import tiny
from tests.training.test_train import arrays, assert_same_bits, logged, points, rows

MEASURED = {'train/images_per_second', 'train/data_wait_fraction'}


def config():
    """Eight steps, evaluated at 4 and 8 in three batches; five batches of recalibration."""
    config = tiny.config()
    config.num_steps, config.steps_per_call = 8, 1
    config.log.every_steps, config.checkpoint.every_steps, config.eval.every_steps = 1, 3, 4
    config.eval.batch_size, config.eval.recalibrate_batches = 99, 5
    config.checkpoint.keep_last = 10
    return config


def build_once(monkeypatch, built):
    """Has all runs of one config share what is built and compiled; `built` keeps it by name."""
    compile_now, build = validation.compile_now, loop.build

    def compile_once(name, lower, *args):
        if name not in built:
            built[name] = compile_now(name, lower, *args)
        return built[name]

    def built_program(config, mesh):
        if 'program' not in built:
            built['program'] = build(config, mesh)
        assert built['program'].config.to_dict() == config.to_dict()
        return built['program']

    monkeypatch.setattr(validation, 'compile_now', compile_once)
    monkeypatch.setattr(loop, 'compile_now', compile_once)
    monkeypatch.setattr(loop, 'build', built_program)


@pytest.fixture(scope='module', autouse=True)
def built_once():
    with pytest.MonkeyPatch.context() as patch:
        build_once(patch, {})
        yield


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """The folder of a run that was never interrupted."""
    workdir = tmp_path_factory.mktemp('straight')
    loop.train(config(), workdir)
    return workdir


def measured(workdir):
    return [{tag: value for tag, value in row.items() if tag not in MEASURED}
            for row in rows(workdir)]


def stored(workdir):
    """What is stored beside the state of the last step: evaluation, variables to evaluate with."""
    folder = workdir / 'checkpoints' / '8'
    return json.loads((folder / 'evaluation.json').read_text()), read_weights(folder)[0]


def assert_ended_like(workdir, straight):
    assert_same_bits(arrays(workdir, 8), arrays(straight, 8))
    (values, variables), (expected, expected_variables) = stored(workdir), stored(straight)
    assert values == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)
    assert measured(workdir) == measured(straight)
    assert points(workdir) == logged(workdir)


class Places:
    """Where a fault may strike: each calls `reached` with its name and a step or a count."""

    def __init__(self, monkeypatch, reached, eval_batch_size=99):
        def around(owner, name, place, number):
            original = getattr(owner, name)

            def call(self, *args):
                reached(f'before {place}', number(*args))
                result = original(self, *args)
                reached(f'after {place}', number(*args))
                return result

            monkeypatch.setattr(owner, name, call)

        self.steps = self.evaluations = 0
        around(Checkpoints, 'save', 'save', lambda state, step: step)
        around(Checkpoints, 'write_recalibrated', 'write_recalibrated', lambda step, _: step)
        around(Checkpoints, 'write_evaluation', 'write_evaluation', lambda step, _: step)
        around(MetricsWriter, 'write', 'row', lambda step, values: (
            step, 'eval' if 'eval/loss' in values else 'train'))
        around(StepLog, 'add', 'step', self._count_steps)
        inputs, recalibrate = Resident.inputs, validation.recalibrate

        def counted(pipeline, start):
            evaluates = pipeline.batch_size == eval_batch_size
            self.evaluations += evaluates
            for i, item in enumerate(inputs(pipeline, start)):
                if evaluates:
                    reached('evaluation', (self.evaluations, i))
                yield item

        def watched(statistics):
            def each():
                for i, item in enumerate(statistics):
                    reached('recalibration', i)
                    yield item
            return recalibrate(each())

        monkeypatch.setattr(Resident, 'inputs', counted)
        monkeypatch.setattr(validation, 'recalibrate', watched)

    def _count_steps(self, _):
        self.steps += 0.5  # asked before and after
        return int(self.steps + 0.5)


def fail():
    raise ZeroDivisionError('injected')


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAULTS = {'signal': lambda: os.kill(os.getpid(), signal.SIGTERM), 'exception': fail,
          'full disk': fill_the_disk}
# Where it strikes, the last step that is then on disk, and the same if a signal came.
STRIKES = [
    ('before step', 1, None, 1), ('after step', 5, 4, 5), ('before row', (6, 'train'), 4, 6),
    ('before save', 3, None, 3), ('after save', 3, 3, 3), ('before save', 4, 3, 4),
    ('evaluation', (1, 1), 4, 4), ('after write_evaluation', 4, 4, 4),
    ('after row', (4, 'eval'), 4, 4), ('before save', 8, 6, 8), ('after save', 8, 8, 8),
    ('recalibration', 2, 8, 8), ('recalibration', 4, 8, 8),
    ('before write_recalibrated', 8, 8, 8), ('after write_recalibrated', 8, 8, 8),
    ('evaluation', (2, 0), 8, 8), ('evaluation', (2, 2), 8, 8),
    ('before write_evaluation', 8, 8, 8), ('before row', (8, 'eval'), 8, 8),
    ('after row', (8, 'eval'), 8, 8),
]
# The faults that every run of the tests injects; the others take two minutes.
QUICK = {
    'signal': ['after step 5', 'evaluation (1, 1)', 'recalibration 2'],
    'exception': ['before save 8', "before row (8, 'eval')"],
    'full disk': ['before write_evaluation 8'],
}
CASES = [
    pytest.param(fault, *strike, id=f'{fault} {strike[0]} {strike[1]}',
                 marks=() if f'{strike[0]} {strike[1]}' in QUICK[fault] else pytest.mark.slow)
    for fault in FAULTS for strike in STRIKES]


@pytest.mark.parametrize(('fault', 'place', 'number', 'kept', 'kept_by_signal'), CASES)
def test_a_fault_at_any_place_loses_no_step_and_changes_no_bit(
        straight, tmp_path, monkeypatch, fault, place, number, kept, kept_by_signal):
    struck = []

    def reached(*where):
        if where == (place, number) and not struck:
            struck.append(where)
            FAULTS[fault]()

    with monkeypatch.context() as patch:
        Places(patch, reached)
        if fault == 'signal':
            kept = kept_by_signal
            try:
                loop.train(config(), tmp_path)
                assert measured(tmp_path) == measured(straight)  # too late to stop it
            except loop.Stopped as stopped:
                assert f'checkpoint saved at step {kept}.' in str(stopped)
        elif fault == 'exception':
            with pytest.raises(ZeroDivisionError, match='injected'):
                loop.train(config(), tmp_path)
        else:
            lost = (f'Nothing up to step {kept} is lost' if kept else 'No checkpoint was written')
            with pytest.raises(UserError, match=f'cannot be written to: No space left .*{lost}'):
                loop.train(config(), tmp_path)
    assert struck
    steps = [int(path.name) for path in (tmp_path / 'checkpoints').glob('[0-9]*')
             if path.name.isdigit()]
    assert max(steps, default=None) == kept
    loop.train(config(), tmp_path)
    assert_ended_like(tmp_path, straight)


def test_recalibrated_statistics_that_are_damaged_are_computed_again(straight, tmp_path, capsys):
    workdir = shutil.copytree(straight, tmp_path / 'run')
    for path in (workdir / 'checkpoints' / '8' / 'recalibrated').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    loop.train(config(), workdir)
    assert 'the recalibrated statistics of step 8 are damaged, and are' in capsys.readouterr().err
    assert_ended_like(workdir, straight)
