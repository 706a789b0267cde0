"""How far the first step moves each layer, against gradients written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from experiments import first_step
from experiments.claims import Verdict
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import program as programs
from tests.tasks.detection import tiny_detector

GROUPS = {(20, True): {0: [0.5, 0.1, 0.2], 1: [0.7, 0.1, 0.2]},
          (20, False): {0: [0.2, 0.3, 0.1], 1: [0.2, 0.4, 0.1]}}


def test_the_change_is_that_of_sgd_by_hand():
    config = digits.get_config()
    config.model.update(depth=8, width=4, plain=True)
    config.schedule.update(warmup='none', learning_rate=0.1)
    config.mesh.data = 1
    found = first_step.of_network(config)
    program = programs.build(config, sharding.create_mesh(config, jax.devices()[:1]))
    state = program.initial_state()
    inputs = next(program.train_data.inputs(0))
    batch = program.train_data.batch(inputs, state.step, state.normalization)

    def loss(params):
        logits = program.model.apply({**state.variables, 'params': params}, batch['image'],
                                     train=True, mutable=['batch_stats'])[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['label'][:, None], 1).mean()

    grads = jax.jit(jax.grad(loss))(state.params)
    paths = [('stem', 'conv'), *((f'stage{i}', 'block1', f'conv{j}')
                                 for i in (1, 2, 3) for j in (1, 2))]
    expected = []
    for path in paths:
        kernel, grad = state.params, grads
        for key in (*path, 'kernel'):
            kernel, grad = kernel[key], grad[key]
        step = 0.1 * (grad + config.optimizer.weight_decay * kernel)
        expected.append(jnp.linalg.norm(step) / jnp.linalg.norm(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_stacked_layers_are_told_apart_and_shortcuts_left_out():
    ones = np.ones((3, 3, 2, 2))
    before = {'stem': {'conv': {'kernel': ones}, 'norm': {'scale': np.ones(2)}},
              'stage1': {'block1': {'conv1': {'kernel': ones},
                                    'shortcut': {'conv': {'kernel': np.ones((1, 1, 2, 2))}}},
                         'blocks': {'conv1': {'kernel': np.stack([ones, ones])}}},
              'head': {'kernel': np.ones((2, 2)), 'bias': np.ones(2)}}
    factors = {'stem': 2.0, 'stage1/block1': 1.5, 'stage1/blocks': np.array([4.0, 0.0])}
    after = jax.tree.map(lambda x: 7 * x, before)
    after['stem']['conv']['kernel'] = factors['stem'] * ones
    after['stage1']['block1']['conv1']['kernel'] = factors['stage1/block1'] * ones
    after['stage1']['blocks']['conv1']['kernel'] = np.stack([4 * ones, 0 * ones])
    np.testing.assert_allclose(first_step.changes(before, after), [1, 0.5, 3, 1])


def test_the_layer_that_moves_most_is_compared_over_the_seeds():
    finding, = first_step.findings(GROUPS)
    assert finding.claim == (
        'the layer that the first step moves most moves less in ResNet-20 than in plain-20')
    assert finding.verdict == Verdict.WITHIN_SPREAD  # 0.35 ± 0.64 of two seeds against 0.6 ± 1.27
    assert first_step.findings({(20, True): GROUPS[20, True]}) == []
    line = ' '.join(first_step.table(GROUPS).splitlines()[2].split())
    assert line == 'plain-20 3 0.600 ± 1.271 0.200 0.200 2'
    points = first_step.average(GROUPS)
    assert {'network': 'ResNet-20', 'depth': 20, 'kind': 'residual', 'layer': 2,
            'change': 0.35} in points
    assert 'mean over the seeds' in first_step.chart(points, 2).to_dict()['title']


def test_small_changes_are_shown_by_three_digits_and_none_are_left_out_of_the_chart():
    groups = {(20, True): {0: [0.0, 0.000398, 0.0000327]}, (20, False): {0: [36000.0, 0.0, 0.0]}}
    lines = [' '.join(line.split()) for line in first_step.table(groups).splitlines()[2:4]]
    assert lines == ['plain-20 3 0.000398 0.0000327 0.0000327 1', 'ResNet-20 3 36000 0 0 1']
    finding, = first_step.findings(groups)
    assert finding.measured == ('36000.000000 (1 seed) against 0.000398 (1 seed), difference '
                                '+35999.999602')
    points = first_step.chart(first_step.average(groups), 1).to_dict()['data']['values']
    assert [point['layer'] for point in points] == [2, 3, 1]


def test_a_network_without_a_plain_twin_is_refused():
    with pytest.raises(UserError, match=r'task must be classification, and model\.family cifar'):
        first_step.of_network(tiny_detector.get_config())
