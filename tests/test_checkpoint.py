"""Checkpoints: which are kept, and what happens to damaged ones."""

import jax
import numpy as np
import pytest

from resnet_jax import sharding
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.errors import UserError
from resnet_jax.program import build


@pytest.fixture
def program(tiny_config):
    return build(tiny_config, sharding.create_mesh(tiny_config))


@pytest.fixture
def state(program):
    return jax.jit(program.create_state, out_shardings=program.shardings)()


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_last_ones_and_the_best_are_kept(tmp_path, state):
    errors = {}
    checkpoints = Checkpoints(tmp_path, keep_last=2, errors=errors)
    for step, error in ((1, 9.0), (2, 3.0), (3, None), (4, 5.0), (5, None)):
        if error is not None:
            errors[step] = error
        checkpoints.save(state, step)
    checkpoints.close()
    assert kept(tmp_path) == [2, 4, 5]
    again = Checkpoints(tmp_path, keep_last=2, errors=errors)
    assert again.steps == [2, 4, 5]
    # An evaluation may come after its checkpoint.
    errors[4] = 1.0
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
    with pytest.raises(UserError, match=r'checkpoint .*/3 cannot be read; move it away'):
        Checkpoints(tmp_path, keep_last=2).restore(program.state)
