"""Checkpoints whose parameters had other names are read, verified and resumed from."""

import dataclasses

import jax
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights.checkpoint import Damaged, locate, read_weights, stored_digests
from resnet_jax.weights.checkpoints import Checkpoints
from resnet_jax.weights.renames import current_path, current_tree

OLD = {'block1': 'first', 'blocks': 'rest'}


def old(tree):
    """A state, or a part of it, under the names that parameters had until November 2026."""
    if isinstance(tree, dict):
        return {OLD.get(name, name): old(child) for name, child in tree.items()}
    if dataclasses.is_dataclass(tree):
        return tree.replace(**{field.name: old(getattr(tree, field.name))
                               for field in dataclasses.fields(tree)})
    if isinstance(tree, tuple):
        children = [old(child) for child in tree]
        return type(tree)(*children) if hasattr(tree, '_fields') else tuple(children)
    return tree


def state():
    """The tree of a training state, with the names of today; every array has other values."""
    numbers = iter(range(100))

    def array(*shape):
        return jax.numpy.full(shape, next(numbers), np.float32)

    def params():
        return {'stem': {'conv': {'kernel': array(3)}},
                'stage1': {'block1': {'conv1': {'kernel': array(3, 2)}},
                           'blocks': {'conv1': {'kernel': array(4, 3, 2)}}},
                'head': {'bias': array(5)}}

    def statistics():
        return {'stage1': {'block1': {'norm1': {'mean': array(2)}},
                           'blocks': {'norm1': {'mean': array(4, 2)}}}}

    return {'step': np.int32(3), 'params': params(), 'batch_stats': statistics(),
            'opt_state': ((), {'trace': params()}), 'schedule_state': {},
            'ema': {'params': params(), 'batch_stats': statistics()},
            'normalization': {'mean': array(1), 'std': array(1)}}


@pytest.fixture
def folder(tmp_path):
    """Holds a checkpoint and recalibrated statistics under the old names."""
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep_last=1)
    checkpoints.save(old(state()), 3)
    checkpoints.write_recalibrated(3, old(recalibrated()))
    checkpoints.close()
    return tmp_path


def recalibrated():
    return jax.tree.map(lambda leaf: leaf + 1000, state()['batch_stats'])


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def shapes(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def test_a_run_resumes_from_names_of_old_everything_verified(folder):
    checkpoint = locate(folder)
    assert 'params/stage1/first/conv1/kernel' in stored_digests(checkpoint, 'default')
    checkpoints = Checkpoints(folder / 'checkpoints', keep_last=1)
    assert_equal(checkpoints.restore(shapes(state())), state())
    assert_equal(checkpoints.read_recalibrated(3, shapes(recalibrated())), recalibrated())
    checkpoints.close()
    variables, _ = read_weights(checkpoint)
    assert_equal(variables, {**state()['ema'], 'batch_stats': recalibrated()})


def test_damage_and_misfits_are_found_under_names_of_old(folder):
    checkpoint, wrong = locate(folder), state()
    wrong['params']['stage1']['blocks']['conv1']['kernel'] = np.zeros((2, 3, 2), np.float32)
    checkpoints = Checkpoints(folder / 'checkpoints', keep_last=1)
    with pytest.raises(UserError, match='1 arrays differ, among them params/stage1/blocks/conv1'):
        checkpoints.restore(shapes(wrong))
    checkpoints.close()
    for file in (checkpoint / 'default').rglob('d/*'):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(Damaged):
        read_weights(checkpoint)


def test_only_blocks_of_stages_are_renamed():
    for path in ('first/kernel', 'params/head/first/kernel', 'stage1/firsts/kernel', 'stage1/rest'):
        assert current_path(path) == path
    assert current_path('ema/params/stage12/rest/conv1/kernel') == (
        'ema/params/stage12/blocks/conv1/kernel')
    assert current_tree({'params': {'stage1': {'first': {'a': 1}}}, 'batch_stats': {}}) == {
        'params': {'stage1': {'block1': {'a': 1}}}, 'batch_stats': {}}
