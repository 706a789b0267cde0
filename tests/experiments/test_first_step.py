"""How far the first step moves each layer, against gradients written out here."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from configs import digits
from experiments import first_step, options
from experiments.claims import Verdict
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import program as programs

PUBLISHED = pathlib.Path(__file__).parents[2] / 'docs' / 'results' / 'cifar10' / 'first_step.json'
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
    assert finding.verdict == Verdict.WITHIN_SPREAD
    # Half of the difference of the logarithms times t, 12.706: 1.83 and 2.14.
    assert finding.measured == ('0.346 (0.0557 to 2.15, 2 seeds) against 0.592 '
                                '(0.0698 to 5.02, 2 seeds), difference -0.245, '
                                'ratio 0.586 (0.221 to 1.55)')
    assert first_step.findings({(20, True): GROUPS[20, True]}) == []
    line = ' '.join(first_step.table(GROUPS).splitlines()[2].split())
    assert line == 'plain-20 3 0.592 (0.0698 to 5.02) 0.200 0.200 2'
    points = first_step.average(GROUPS)
    assert {'network': 'ResNet-20', 'depth': 20, 'kind': 'residual', 'layer': 2,
            'change': pytest.approx(0.12 ** 0.5)} in points
    assert 'geometric mean over the seeds' in first_step.chart(points, 2).to_dict()['title']


def test_small_changes_are_shown_by_three_digits_and_none_are_left_out_of_the_chart():
    groups = {(20, True): {0: [0.0, 0.000398, 0.0000327]}, (20, False): {0: [36000.0, 0.0, 0.0]}}
    lines = [' '.join(line.split()) for line in first_step.table(groups).splitlines()[2:4]]
    assert lines == ['plain-20 3 0.000398 0.0000327 0.0000327 1', 'ResNet-20 3 36000 0 0 1']
    finding, = first_step.findings(groups)
    assert finding.measured == ('36000.000000 (1 seed) against 0.000398 (1 seed), difference '
                                '+35999.999602')
    points = first_step.chart(first_step.average(groups), 1).to_dict()['data']['values']
    assert [point['layer'] for point in points] == [2, 3, 1]


def test_means_over_seeds_are_those_of_the_logarithms_and_of_one_seed_its_values():
    np.testing.assert_allclose(first_step.mean_changes({0: [1e-3, 0.0, 2.0], 1: [10.0, 0.0, 0.5]}),
                               [0.1, 0.0, 1.0])
    published = json.loads(PUBLISHED.read_text())
    groups = {(seed['depth'], seed['plain']): {seed['seed']: seed['change']}
              for seed in published['seeds']}
    assert first_step.average(groups) == published['layers']
    assert [finding.record() for finding in first_step.findings(groups)] == published['findings']
    printed = '\n\n'.join([first_step.table(groups), *(
        finding.text() for finding in first_step.findings(groups))])
    assert printed + '\n' == PUBLISHED.with_suffix('.txt').read_text()


def test_a_step_that_changes_no_layer_is_refused():
    config = digits.get_config()
    config.model.update(depth=8, width=4)
    config.init.freeze = ('.*',)
    config.mesh.data = 1
    with pytest.raises(UserError, match=r'changes none of the 3x3 layers: .*init\.freeze'):
        first_step.of_network(config)


@pytest.mark.parametrize('command', ['first_step', 'responses'])
@pytest.mark.parametrize('config', ['configs/imagenet_vgg16.py', 'configs/scenes_r20.py'])
def test_a_network_without_a_plain_twin_is_refused_before_anything_is_done(
        command, config, tmp_path, commands):
    refused = commands.run(f'experiments.{command}', f'--config={config}', '--seeds=0',
                           f'--workdir={tmp_path / "made"}')
    assert (refused.status, refused.output) == (1, '')
    assert refused.errors == (
        'error: only residual networks that classify have a plain twin to compare with: give a '
        '--config with task classification and model.family cifar or imagenet.\n')
    assert not (tmp_path / 'made').exists()


def test_the_mesh_of_the_config_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(options, 'base_arguments', lambda default: [
        '--config=configs/digits.py', '--config.mesh.data=8'])
    monkeypatch.setattr(options, 'folder', lambda default: tmp_path)
    meshes = []
    monkeypatch.setattr(first_step, 'of_network', lambda config: [
        meshes.append((config.mesh.data, config.mesh.model)) or 0.5])
    with flagsaver.as_parsed(depths='8', seeds='0', workdir=str(tmp_path)):
        first_step.main([])
    assert meshes == [(1, 1)] * 2
