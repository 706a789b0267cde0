"""Digests: what they see, and what they do not depend on."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.weights import digests as digests_lib
from resnet_jax.weights.digests import checksum, digests


def array(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@settings(max_examples=60)
@given(st.data())
def test_every_changed_element_changes_the_digest(data):
    dtype = data.draw(st.sampled_from([np.float32, np.int32, np.uint8, np.float64, bool,
                                       jax.numpy.bfloat16]))
    x = array(*data.draw(st.sampled_from([(), (5,), (3, 3, 4, 8)])), dtype=dtype)
    changed = x.copy()
    content = changed.reshape(-1).view(np.uint8)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert digests({'x': x}) == digests({'x': x.copy()})
    assert digests({'x': x}) != digests({'x': changed})


def test_exchanged_elements_other_shapes_and_other_types_change_the_digest():
    x = array(4, 6)
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    others = (x, swapped, x.reshape(6, 4), x.view(np.int32))
    assert len({digests({'x': other})['x'] for other in others}) == 4


@pytest.mark.parametrize('spec', [(), ('a',), (None, 'b'), ('a', 'b'), (('a', 'b'),)])
def test_a_digest_depends_neither_on_the_mesh_nor_on_the_blocks(spec, monkeypatch):
    mesh = jax.make_mesh((4, 2), ('a', 'b'))
    x = array(16, 12, 3)
    whole = digests({'x': x})
    assert digests({'x': jax.device_put(x, NamedSharding(mesh, P(*spec)))}) == whole
    for block in (1, 7, 36, 100):
        monkeypatch.setattr(digests_lib, 'BLOCK', block)
        assert digests({'x': x}) == whole


def test_a_digest_stays_what_it_is():
    """Checkpoints hold digests; those that are on disk must be recognised."""
    assert digests({'x': {'y': np.arange(6, dtype=np.float32).reshape(2, 3)}}) == {
        'x/y': 'float32[2,3] 987589f541200000'}
    assert checksum({'b': 1.5, 'a': float('nan')}) == checksum({'a': float('nan'), 'b': 1.5})
