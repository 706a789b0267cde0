"""Checkpoints: which are kept, and what happens to damaged ones."""

import jax
import numpy as np
import pytest

from resnet_jax import sharding
from resnet_jax.checkpoint import Checkpoints, Damaged
from resnet_jax.program import build


@pytest.fixture
def program(tiny_config):
    return build(tiny_config, sharding.create_mesh(tiny_config))


@pytest.fixture
def state(program):
    return jax.jit(program.create_state, out_shardings=program.shardings)()


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def saved(folder, state, *steps, **options):
    """Checkpoints of these steps, all on disk."""
    checkpoints = Checkpoints(folder, keep_last=len(steps), **options)
    for step in steps:
        checkpoints.save(state, step)
    checkpoints.wait()
    return checkpoints


def test_the_last_ones_and_the_best_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=True)
    for step, error in ((1, 9.0), (2, 3.0), (3, None), (4, 5.0), (5, None)):
        checkpoints.save(state, step)
        if error is not None:
            checkpoints.write_evaluation(step, {'eval/top1_error': error})
    checkpoints.close()
    assert kept(tmp_path) == [2, 4, 5]
    again = Checkpoints(tmp_path, keep_last=2, keep_best=True)
    assert again.steps == [2, 4, 5]
    assert again.evaluations == {2: {'eval/top1_error': 3.0}, 4: {'eval/top1_error': 5.0}}
    # An evaluation may come long after its checkpoint; what it makes superfluous goes at once.
    again.write_evaluation(4, {'eval/top1_error': 1.0})
    assert again.steps == kept(tmp_path) == [4, 5]
    for step in (6, 7):
        again.save(state, step)
    again.close()
    assert kept(tmp_path) == [4, 6, 7]


def test_without_the_best_only_the_last_ones_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step in (1, 2):
        checkpoints.save(state, step)
    checkpoints.close()
    assert kept(tmp_path) == [2]


def test_a_checkpoint_holds_every_bit_and_goes_onto_another_mesh(tmp_path, tiny_config, state):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(state, 7)
    checkpoints.close()
    tiny_config.mesh.data = 8
    tiny_config.mesh.parameters = 'fsdp'
    other = build(tiny_config, sharding.create_mesh(tiny_config))
    restored = Checkpoints(tmp_path, keep_last=1).restore(other.state)
    for old, new, like in zip(*map(jax.tree.leaves, (state, restored, other.state)), strict=True):
        np.testing.assert_array_equal(old, new)
        assert new.sharding == like.sharding


def test_what_an_interrupted_run_left_half_written_is_no_checkpoint(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(state, 1)
    checkpoints.close()
    (tmp_path / '2.orbax-checkpoint-tmp').mkdir()
    again = Checkpoints(tmp_path, keep_last=2)
    assert again.latest_step == 1
    again.save(state, 2)  # waits until what was left is gone
    again.close()
    assert kept(tmp_path) == [1, 2]


@pytest.mark.parametrize('damage', ['cut', 'remove'])
def test_a_damaged_checkpoint_is_named_in_one_sentence(tmp_path, program, state, damage):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(state, 3)
    checkpoints.close()
    for path in (tmp_path / '3').rglob('*'):
        if path.is_file() and 'ocdbt' in str(path):
            path.write_bytes(path.read_bytes()[:-20]) if damage == 'cut' else path.unlink()
    with pytest.raises(Damaged, match=r'checkpoint .*/3 is damaged .* There is none before it'):
        Checkpoints(tmp_path, keep_last=2).restore(program.state)


def test_what_lies_beside_a_state_neither_disturbs_it_nor_outlives_it(tmp_path, program, state):
    like = program.state.batch_stats
    checkpoints = saved(tmp_path, state, 1, 2)
    assert checkpoints.read_recalibrated(1, like) is None
    statistics = jax.tree.map(lambda x: x + 3, state.batch_stats)
    for step in (1, 2):
        checkpoints.write_recalibrated(step, state.batch_stats)
        checkpoints.write_recalibrated(step, statistics)  # takes the place of the first
        checkpoints.write_evaluation(step, {'eval/top1_error': 5.0 + step, 'eval/loss': np.nan})
    (tmp_path / '2' / 'recalibrated.orbax-checkpoint-tmp').mkdir()  # of a run that was killed
    checkpoints.close()
    again = Checkpoints(tmp_path, keep_last=2, keep_best=True)
    assert again.steps == [1, 2] and again.latest_step == again.written_step == 2
    assert not list(tmp_path.glob('*/*tmp*'))
    assert again.evaluations[1]['eval/top1_error'] == 6
    assert np.isnan(again.evaluations[2]['eval/loss'])
    jax.tree.map(np.testing.assert_array_equal, again.read_recalibrated(2, like), statistics)
    for restored in (again.restore(program.state), again.restore(program.state, 1)):
        jax.tree.map(np.testing.assert_array_equal, restored, state)
    for step in (3, 4):
        again.save(state, step)
    again.close()
    assert kept(tmp_path) == [1, 3, 4]
    assert {path.name for path in (tmp_path / '1').iterdir()} >= {
        '_CHECKPOINT_METADATA', 'default', 'evaluation.json', 'recalibrated'}
