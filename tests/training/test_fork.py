"""A run that starts from a checkpoint of another one, with its optimizer state."""

import json

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import loop, workdir
from resnet_jax.training.writers import read_rows
from tests import tiny
from tests.training.test_train import arrays, assert_same_bits


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """The folder of a run of 8 steps with checkpoints of steps 6 and 8."""
    workdir = tmp_path_factory.mktemp('original')
    loop.train(config(), workdir)
    return workdir


def config(**fields):
    result = tiny.config()
    result.update_from_flattened_dict({
        'num_steps': 8, 'eval.every_steps': 6, 'checkpoint.every_steps': 2, 'log.every_steps': 1,
        'checkpoint.keep_best': False, 'optimizer.ema_decay': 0.9, 'schedule.name': 'plateau',
        'schedule.plateau_window': 3, **fields})
    return result


def losses(workdir):
    return {row['step']: row['train/loss'] for row in read_rows(workdir / 'metrics.jsonl')
            if 'train/loss' in row}


@pytest.mark.slow
def test_a_fork_with_the_same_config_ends_with_the_bits_of_the_original(
        original, tmp_path, capsys):
    origin = original / 'checkpoints' / '6'
    loop.train(config(**{'init.resume_from': str(origin)}), tmp_path)
    told = capsys.readouterr().out
    assert f'starting from step 6 of {original}, with its optimizer state\n' in told
    assert told.count('evaluation at step') == 2  # of step 6 too: a fork may have other data
    assert_same_bits(arrays(original, 8), arrays(tmp_path, 8))
    assert losses(tmp_path) == {step: loss for step, loss in losses(original).items() if step > 6}
    # The same command again resumes from its own checkpoints; the origin may be gone by then.
    loop.train(config(**{'init.resume_from': str(tmp_path / 'gone' / 'checkpoints' / '6')}),
                tmp_path)
    assert 'starting from' not in capsys.readouterr().out


@pytest.mark.slow
def test_a_fork_may_have_another_recipe(original, tmp_path):
    values = loop.train(config(**{'init.resume_from': str(original / 'checkpoints' / '6'),
                                   'schedule.learning_rate': 0.001}), tmp_path)
    ours, theirs = losses(tmp_path), losses(original)
    assert ours[7] == theirs[7] and ours[8] != theirs[8]
    assert np.isfinite(values['eval/loss'])
    stored = json.loads((tmp_path / 'config.json').read_text())
    assert stored['schedule']['learning_rate'] == 0.001


def test_a_run_resumes_with_another_pipeline_but_not_with_another_recipe(original):
    check = workdir.check_config
    check(config(**{'data.pipeline': 'host', 'data.resident_bytes': 1,
                    'data.on_unreadable': 'skip'}), original)
    with pytest.raises(UserError, match=r'data\.flip: False -> True'):
        check(config(**{'data.flip': True}), original)


@pytest.mark.parametrize(('fields', 'sentence'), [
    ({'model.width': 4}, r'does not fit the network and the optimizer .* arrays differ'),
    ({'optimizer.name': 'adamw'}, r'does not fit .* opt_state/'),
    ({'num_steps': 7}, r'resume_from=.*/8 is beyond num_steps=7'),
    ({'init.checkpoint': 'x'}, 'cannot both be set'),
    ({'init.resume_from': '/nowhere'}, 'there is no folder /nowhere')])
def test_a_fork_that_cannot_be_is_refused_in_a_sentence(original, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        # A workdir stands for its newest checkpoint.
        loop.train(config(**{'init.resume_from': str(original), **fields}), tmp_path / 'fork')
    assert not list(tmp_path.glob('fork/checkpoints/*'))


@pytest.mark.slow
def test_a_fork_of_a_recalibrated_checkpoint_reports_what_its_own_checkpoint_holds(
        original, tmp_path):
    fields = {'num_steps': 12, 'eval.recalibrate_batches': 2, 'checkpoint.keep_best': True}
    loop.train(config(**fields), tmp_path / 'origin')
    loop.train(config(**{**fields, 'num_steps': 18, 'init.resume_from': str(tmp_path / 'origin')}),
                tmp_path / 'fork')
    rows = {name: {row['step']: row['eval/loss'] for row in read_rows(
        tmp_path / name / 'metrics.jsonl') if 'eval/loss' in row} for name in ('origin', 'fork')}
    assert rows['fork'].keys() == {12, 18}
    # The training state alone was taken over, without the recalibrated statistics.
    assert rows['fork'][12] != rows['origin'][12]
