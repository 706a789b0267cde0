"""Checkpoints: which are kept, and what happens to damaged ones."""

import json
import os
import re
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.tasks import Headline
from resnet_jax.training.program import build
from resnet_jax.weights.checkpoint import Damaged, read_weights
from resnet_jax.weights.checkpoints import Checkpoints
from tests import tiny


@pytest.fixture(scope='module')
def program():
    config = tiny.config()
    return build(config, sharding.create_mesh(config))


@pytest.fixture(scope='module')
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


ERROR = Headline('eval/top1_error', 'top-1 error').rank


def test_the_last_ones_and_the_best_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep_last=2, rank=ERROR)
    for step, error in ((1, 9.0), (2, 3.0), (3, None), (4, 5.0), (5, None)):
        checkpoints.save(state, step)
        if error is not None:
            checkpoints.write_evaluation(step, {'eval/top1_error': error})
    checkpoints.close()
    assert kept(tmp_path) == [2, 4, 5]
    again = Checkpoints(tmp_path, keep_last=2, rank=ERROR)
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


def test_a_half_written_checkpoint_may_vanish_while_a_run_is_opened(
        tmp_path, state, monkeypatch):
    saved(tmp_path, state, 1).close()
    (tmp_path / 'half').mkdir()
    scandir = os.scandir

    def gone(path='.'):  # as if Orbax's thread had deleted it since it was listed
        if str(path).endswith('half'):
            raise FileNotFoundError(str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', gone)
    again = Checkpoints(tmp_path, keep_last=2)
    monkeypatch.undo()
    assert again.latest_step == 1
    again.close()


@pytest.mark.parametrize('damage', ['cut', 'remove'])
def test_a_damaged_checkpoint_is_named_in_one_sentence(tmp_path, program, state, damage, capfd):
    checkpoints = saved(tmp_path, state, 2, 3)
    for path in (tmp_path / '3').rglob('*'):
        if path.is_file() and 'ocdbt' in str(path):
            path.write_bytes(path.read_bytes()[:-20]) if damage == 'cut' else path.unlink()
    capfd.readouterr()
    sentence = (f'checkpoint {tmp_path}/3 is damaged .*The checkpoint before it is {tmp_path}/2: '
                f'to resume from there, pass --config.init.resume_from={tmp_path}/2 with a new')
    with pytest.raises(Damaged, match=sentence):
        checkpoints.restore(program.state)
    with pytest.raises(Damaged, match=sentence):
        read_weights(tmp_path / '3')
    time.sleep(0.2)  # reads that were under way
    assert capfd.readouterr().err == ''
    for path in (tmp_path / '2').rglob('manifest.ocdbt'):
        path.unlink()
    with pytest.raises(Damaged, match=f'{tmp_path}/2 is damaged .*There is no earlier one'):
        checkpoints.restore(program.state, 2)
    assert checkpoints.steps == kept(tmp_path) == [2, 3]  # nothing is deleted or moved


def test_a_damaged_description_is_named_before_orbax_prints_it(tmp_path, state, capfd):
    saved(tmp_path, state, 1, 2).close()
    file = tmp_path / '2' / '_CHECKPOINT_METADATA'
    file.write_text(file.read_text().replace('"digests": {', '"digests": X'))
    with pytest.raises(Damaged, match=f'{tmp_path}/2 is damaged .*before it is {tmp_path}/1'):
        Checkpoints(tmp_path, keep_last=2)
    assert capfd.readouterr().err == ''


def test_a_checkpoint_of_another_state_is_not_called_damaged(tmp_path, program, state):
    checkpoints = saved(tmp_path, state, 1)
    other = program.state.replace(opt_state=())
    with pytest.raises(UserError, match=r'does not fit .* opt_state/') as error:
        checkpoints.restore(other)
    assert not isinstance(error.value, Damaged)


@pytest.mark.parametrize(('where', 'error'), [
    ((ocp.PyTreeCheckpointHandler, 'restore'), MemoryError()),
    ((ocp.PyTreeCheckpointHandler, 'restore'), ValueError('RESOURCE_EXHAUSTED: no descriptors')),
    ((jax, 'make_array_from_callback'), ValueError('the sharding does not divide the shape'))])
def test_other_errors_than_damage_keep_their_traceback(
        tmp_path, program, state, monkeypatch, where, error):
    checkpoints = saved(tmp_path, state, 1)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(*where, fail)
    with pytest.raises(type(error)) as raised:
        checkpoints.restore(program.state)
    assert raised.value is error


def without_digests(checkpoint):
    """Makes a checkpoint what it was before there were digests."""
    for file in checkpoint.rglob('_CHECKPOINT_METADATA'):
        file.write_text(json.dumps(json.loads(file.read_text()) | {'custom_metadata': {}}))


def test_a_checkpoint_from_before_there_were_digests_is_restored(tmp_path, program, state):
    checkpoints = saved(tmp_path, state, 1)
    without_digests(tmp_path / '1')
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(program.state), state)
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / '1')[0], state.variables)
    with pytest.raises(UserError, match='does not fit'):
        checkpoints.restore(program.state.replace(opt_state=()))


@pytest.mark.parametrize('name', ['trace/head/bias', 'batch_stats/stem/norm/mean'])
def test_an_array_that_is_not_what_was_written_is_named(tmp_path, program, state, name):
    def change(path, leaf):
        if jax.tree_util.keystr(path, simple=True, separator='/').endswith(name):
            return leaf.at[3].add(0.125)
        return leaf

    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(state, 1)
    checkpoints.save(jax.tree.map_with_path(change, state), 2)
    checkpoints.wait()
    shutil.copy(tmp_path / '1' / '_CHECKPOINT_METADATA', tmp_path / '2')
    with pytest.raises(Damaged, match=rf'\(not as they were written: \S*{name}\)'):
        checkpoints.restore(program.state, 2)
    if name.startswith('batch_stats'):
        with pytest.raises(Damaged, match=name):
            read_weights(tmp_path / '2')
    else:  # which is not read
        read_weights(tmp_path / '2')


def everything_read(folder, like):
    """What a checkpoint of step 2 gives to whoever asks, or the sentence."""
    try:
        checkpoints = Checkpoints(folder, keep_last=2)
    except Damaged as error:
        return {'state': str(error)}
    found = {'evaluation': checkpoints.evaluations.get(2)}
    for name, read in (
            ('state', lambda: checkpoints.restore(like)),
            ('recalibrated',
             lambda: checkpoints.read_recalibrated(2, like.batch_stats)),
            ('weights', lambda: read_weights(folder / '2'))):
        try:
            found[name] = read()
        except Damaged as error:
            found[name] = str(error)
    checkpoints.close()
    return found


@pytest.mark.parametrize('flips', [
    4, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_nothing_that_is_read(tmp_path, program, state, flips):
    good, copy = tmp_path / 'good', tmp_path / 'copy'
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.variables))
    like = program.state.replace(ema=program.state.variables)
    checkpoints = saved(good, state, 1, 2)
    checkpoints.write_recalibrated(2, jax.tree.map(lambda x: x + 3, state.batch_stats))
    checkpoints.write_evaluation(2, {'eval/top1_error': 2.5, 'eval/count': 297})
    checkpoints.close()
    expected = everything_read(good, like)
    files = sorted(path.relative_to(good) for path in (good / '2').rglob('*') if path.is_file())
    sizes = np.array([(good / file).stat().st_size for file in files])
    rng, refused = np.random.default_rng(flips), 0
    for i in range(flips):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        # Half of them in any file, half in any byte: most bytes are those of arrays.
        file = copy / files[rng.choice(len(files), p=sizes / sizes.sum() if i % 2 else None)]
        content = bytearray(file.read_bytes())
        bit = int(rng.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        for name, found in everything_read(copy, like).items():
            if isinstance(found, str):
                assert re.fullmatch(r'the checkpoint .*/2 is damaged \(.*', found)
                refused += 1
            elif found is None and name == 'evaluation':
                refused += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, found, expected[name])
    assert refused > flips / 4


def test_a_description_that_hides_the_moving_averages_is_refused(tmp_path, state):
    saved(tmp_path, state.replace(ema=state.variables), 1).close()
    file = tmp_path / '1' / 'default' / '_METADATA'
    file.write_text(file.read_text().replace('ema', 'emb'))
    with pytest.raises(Damaged, match='is damaged'):
        read_weights(tmp_path / '1')


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
    again = Checkpoints(tmp_path, keep_last=2, rank=ERROR)
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
