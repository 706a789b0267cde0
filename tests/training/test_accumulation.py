"""Gradients in parts: devices add them up once, and where they cannot, the result is the same."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.training import accumulation, compiled
from resnet_jax.xla import topologies
from tests.tasks.detection import tiny_detector
from tests.xla.test_compile import host_config


@pytest.fixture(scope='module')
def cpus():
    return topologies.create('cpu:8')


def in_parts(count, **fields):
    config = host_config()
    config.model.virtual_batch_size = 2
    config.optimizer.accumulation_steps = count
    config.update_from_flattened_dict(fields)
    return config


def all_reduces(config, cpus):
    found = compiled.report(config, cpus)['collectives']
    assert set(found) == {'all-reduce'}
    return found['all-reduce']


@pytest.mark.slow
def test_a_step_in_four_parts_adds_up_the_bytes_of_a_step_in_one(cpus):
    one, four = (all_reduces(in_parts(count), cpus) for count in (1, 4))
    assert one['count'] == 1
    # One of gradients, statistics and losses, and one of four counts of images.
    assert four['count'] == 2
    assert four['bytes'] == pytest.approx(one['bytes'], abs=16)


@pytest.mark.slow
def test_a_detector_adds_up_the_gradients_of_two_parts_once(cpus):
    config = tiny_detector.get_config()
    config.mesh.data, config.model.virtual_batch_size = 8, 1
    one = all_reduces(config, cpus)
    config.batch_size, config.optimizer.accumulation_steps = 2 * config.batch_size, 2
    assert all_reduces(config, cpus)['bytes'] == pytest.approx(one['bytes'], rel=0.01)


@pytest.mark.parametrize(('fields', 'local'), [
    ({}, True), ({'model.virtual_batch_size': 4}, False), ({'mesh.parameters': 'fsdp'}, False),
    ({'model.virtual_batch_size': None}, False),
    ({'model.virtual_batch_size': None, 'init.freeze_bn': True}, True)])
def test_devices_work_alone_where_virtual_batches_and_parameters_are_whole(fields, local):
    assert accumulation.is_local(in_parts(4, **fields), 8) == local


def test_random_numbers_of_a_loss_are_noticed():
    def draws(images, key):
        return images * jax.random.uniform(key, images.shape), images.sum()

    def ignores(images, key):
        jax.random.fold_in(key, 1)
        return images.sum()

    arguments = jnp.ones(3), jax.random.key(0)
    assert accumulation._draws(draws, *arguments)
    assert not accumulation._draws(ignores, *arguments)
