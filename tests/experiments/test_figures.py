"""The paper's figures and tables, drawn from ledgers whose numbers are known."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10, digits, folder, imagenet_r34, imagenet_vgg16
from experiments import (
    complexity,
    curves,
    degradation,
    depth,
    detection,
    first_step,
    layers,
    paper,
    responses,
    shortcuts,
    study,
    tables,
)
from experiments.claims import Verdict
from resnet_jax import models
from resnet_jax.config import leaves
from resnet_jax.errors import UserError

# Final test error and training loss of made-up runs, by network and seed.
ERRORS = {('plain', 20): (9.0, 9.2, 9.1), ('plain', 56): (13.0, 13.5, 13.2),
          ('residual', 20): (8.7, 8.8, 8.9), ('residual', 56): (7.0, 9.2, 8.7)}


def row(config, error, loss, **fields):
    config = config()
    config.update_from_flattened_dict(fields)
    name = ','.join(f'{field}={value}' for field, value in fields.items())
    return {'run': name, 'overrides': fields, 'status': 'finished', 'error': None,
            'final_error': error, 'best_error': error, 'final_train_error': loss,
            'final_train_loss': loss, 'config': leaves(config)}


def rows_of(config=cifar10.get_config):
    return [row(config, error, error / 100, **{
        'model.depth': depth, 'model.plain': kind == 'plain', 'seed': seed})
        for (kind, depth), errors in ERRORS.items() for seed, error in enumerate(errors)]


def write_lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def verdicts(findings):
    return {finding.claim: finding.verdict for finding in findings}


def test_degradation_is_told_from_the_spread_of_the_seeds():
    groups = study.by(rows_of(), 'model.depth', 'model.plain')
    found = verdicts(degradation.findings(groups))
    assert found == {
        'plain-20 has a lower training loss than plain-56': Verdict.HELD,
        'plain-20 has a lower test error than plain-56': Verdict.HELD,
        'ResNet-56 has a lower training loss than ResNet-20': Verdict.WITHIN_SPREAD,
        'ResNet-56 has a lower test error than ResNet-20': Verdict.WITHIN_SPREAD,
        'ResNet-20 has a lower training loss than plain-20': Verdict.HELD,
        'ResNet-20 has a lower test error than plain-20': Verdict.HELD,
        'ResNet-56 has a lower training loss than plain-56': Verdict.HELD,
        'ResNet-56 has a lower test error than plain-56': Verdict.HELD,
        'ResNet-56 ends at a lower training loss than plain-56 in every seed': Verdict.HELD,
    }
    lines = degradation.table(groups).splitlines()
    assert lines[0] == 'CIFAR-10, 64,000 steps'
    assert lines[3].split() == ['plain-20', '-', '9.10', '±', '0.25', '0.09', '±', '0.00', '0.0910',
                                '±', '0.0025', '3']
    assert lines[6].split()[:5] == ['ResNet-56', '6.97', '8.30', '±', '2.86']


def test_tables_of_one_seed_say_nothing_of_intervals():
    found = rows_of()

    def footnotes(rows):
        groups = study.by(rows, 'model.depth', 'model.plain')
        count = len(groups[20, True])
        of_layers = {key: {seed: [1.0, 2.0 + seed] for seed in group}
                     for key, group in groups.items()}
        network = {'network': 'ResNet-20', 'depth': 20, 'dataset': 'digits', 'parameters': 1,
                   'paper': None, 'error': 1.0, 'best': 1.0, 'loss': 0.1, 'seeds': count,
                   'half_width': 0.5 if count > 1 else None, 'train_error': 0.1,
                   'train_half_width': 0.05 if count > 1 else None}
        tested = {'baseline': {seed: {'ap': 30.0 + seed, 'ap50': 50.0} for seed in range(count)}}
        texts = [degradation.table(groups), depth.table([network]),
                 shortcuts.table([network]), responses.table(of_layers),
                 first_step.table(of_layers), detection.table(tested, rows[0]['config']),
                 tables.over_seeds([one | {'overrides': {'seed': one['config']['seed']}}
                                    for one in found[:count]])]
        return [text.splitlines()[-1] for text in texts]

    several = footnotes(found)
    spread = re.compile('interval|deviation over|over the seeds')
    assert all(spread.search(line) for line in several), several
    alone = footnotes([one for one in found if one['config']['seed'] == 0])
    assert not any(spread.search(line) for line in alone), alone
    assert alone[0] == "the paper's error is on CIFAR-10 or ImageNet"
    assert alone[1].split()[0] == 'ResNet-20'  # the last row: there is nothing to note


def test_the_command_draws_a_ledger(tmp_path, commands):
    found = rows_of(digits.get_config)
    for one in found:
        (tmp_path / one['run']).mkdir()
        write_lines(tmp_path / one['run'] / 'metrics.jsonl', [
            {'step': 25, 'train/top1_error': 60.0 + one['config']['seed']},
            {'step': 50, 'train/top1_error': 30.0}, {'step': 50, 'eval/top1_error': 40.0}])
    write_lines(tmp_path / 'ledger.jsonl', found)
    process = commands.run('experiments.degradation', f'--ledger={tmp_path}',
                           f'--workdir={tmp_path}/out')
    assert process.status == 0, process.errors
    assert 'plain-20 has a lower test error than plain-56: held.' in process.output
    assert 'within the spread of the seeds' in process.output
    assert 'no number for digits' in process.output
    assert (tmp_path / 'out' / 'degradation.png').read_bytes()[:4] == b'\x89PNG'
    assert (tmp_path / 'out' / 'degradation.svg').read_text().startswith('<svg')
    assert (tmp_path / 'out' / 'degradation.txt').read_text() in process.output
    written = json.loads((tmp_path / 'out' / 'degradation.json').read_text())
    assert len(written['runs']) == 12 and len(written['findings']) == 9
    assert {'kind': 'plain', 'depth': 20, 'images': 'training', 'step': 25, 'error': 61.0,
            'least': 60.0, 'greatest': 62.0, 'seeds': 3} in written['curves']
    assert written['curves'] == curves.points(found, tmp_path)


def test_table_6_stands_beside_the_paper():
    groups = study.by([one for one in rows_of() if not one['config']['model.plain']], 'model.depth')
    numbers = depth.results(dict(sorted(groups.items())))
    assert [(one['network'], one['parameters'], one['paper']) for one in numbers] == [
        ('ResNet-20', 269_722, 8.75), ('ResNet-56', 853_018, 6.97)]
    np.testing.assert_allclose(numbers[1]['std'], np.std([7.0, 9.2, 8.7], ddof=1))
    trained = {name: sum(one['final_train_error'] for one in group.values()) / len(group)
               for name, group in (('ResNet-20', groups[20,]), ('ResNet-56', groups[56,]))}
    assert {one['network']: one['train_error'] for one in numbers} == pytest.approx(trained)
    assert f'{trained["ResNet-56"]:.2f} ± ' in depth.table(numbers)
    finding, = depth.findings(groups)
    assert finding.paper == '6.97 % against 8.75 %' and finding.verdict == Verdict.WITHIN_SPREAD
    spec = depth.chart(numbers).to_dict()
    assert len(spec['layer']) == 2
    assert spec['title']['subtitle'] == 'mean over the seeds and 95 % t-interval, cut off at 0'
    alone = [{**one, 'seeds': 1, 'half_width': None} for one in numbers]
    assert depth.chart(alone).to_dict()['title']['subtitle'] == 'one seed'


@pytest.mark.slow
def test_table_3_compares_the_options():
    found = [row(imagenet_r34.get_config, 30 - i + seed / 10, 1.0, **{
        'model.shortcut': option, 'model.plain': False, 'seed': seed})
        for i, option in enumerate('ABC') for seed in range(3)]
    found += [row(imagenet_r34.get_config, 40 + seed, 2.0, **{'model.plain': True, 'seed': seed})
              for seed in range(3)]
    groups = shortcuts.group(found)
    findings = shortcuts.findings(groups)
    assert [finding.verdict for finding in findings] == [Verdict.HELD] * 5
    assert findings[0].paper == '25.03 % against 28.54 % (10-crop)'
    for one in found:
        one['config'].update({f'model.{field}': value for field, value in
                              digits.get_config().model.items() if field not in (
                                  'shortcut', 'plain')} | {
            'data.image_size': 8, 'data.channels': 1, 'data.source': 'digits'})
    numbers = shortcuts.results(shortcuts.group(found))
    assert [(one['network'], one['parameters'], one['paper']) for one in numbers] == [
        ('plain-20', 269_434, None), ('ResNet-20 A', 269_434, None),
        ('ResNet-20 B', 272_186, None), ('ResNet-20 C', 283_674, None)]
    assert 'ResNet-20 C' in shortcuts.table(numbers)
    spec = shortcuts.chart(numbers).to_dict()
    assert len(spec['layer']) == 2
    assert spec['title']['subtitle'] == 'mean over the seeds and 95 % t-interval'


def test_runs_that_a_figure_cannot_tell_apart_are_refused():
    twice = [row(digits.get_config, 1.0, 0.1, **{'seed': 0, 'model.width': width})
             for width in (8, 16)]
    with pytest.raises(UserError, match=r'differ in model\.width, which this figure does not tell'):
        study.by(twice, 'model.depth')


@pytest.mark.slow
def test_sizes_of_the_published_networks(monkeypatch):
    few = {'plain-34', 'ResNet-152', 'VGG-16', 'VGG-19'}
    monkeypatch.setattr(complexity, 'NETWORKS', [
        network for network in complexity.NETWORKS if network[0] in few])
    points = list(complexity.published())
    by_name = {(point['network'], point['of']): point for point in points}
    assert by_name['ResNet-152', complexity.BEST]['multiply_adds'] == 11_282_415_616
    assert by_name['VGG-19', complexity.BEST]['parameters'] == 143_667_240
    assert by_name['GoogLeNet', complexity.TEN_CROP]['top5'] == 9.15
    assert by_name['ResNet-1202', complexity.CIFAR10]['top1'] == 7.93
    assert [finding.verdict for finding in complexity.findings(points)] == [Verdict.HELD] * 2
    assert 'plain-34' in complexity.table(points)
    assert len(complexity.chart(points).to_dict()['concat']) == 3


def test_measured_sizes_say_of_how_many_seeds_they_are():
    point = {'network': 'ResNet-20', 'of': 'digits, measured', 'source': 'measured',
             'parameters': 1, 'multiply_adds': 1, 'top1': 1.0, 'top5': None}
    lines = complexity.table([{**point, 'seeds': seeds} for seeds in (1, 3)]).splitlines()[2:]
    assert [line.split('  ')[-1] for line in lines] == ['1 seed', '3 seeds']


def test_every_network_with_a_published_error_has_a_size():
    assert {name for name, *_ in complexity.NETWORKS} | {'GoogLeNet'} == (
        paper.IMAGENET_ERROR.keys())


def test_responses_are_those_of_a_network_computed_layer_by_layer():
    config = digits.get_config().model
    config.update(depth=14, width=4)
    model, rng = models.create(config), np.random.default_rng(0)
    images = rng.normal(size=(6, 8, 8, 1)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(  # positive variances, and kernels that neither vanish nor explode
        lambda leaf: (rng.uniform(0.5, 1.5, leaf.shape) if len(leaf.shape) < 3 else
                      rng.normal(size=leaf.shape) / np.prod(leaf.shape[-4:-1]) ** 0.5
                      ).astype(np.float32), shapes)
    expected = by_hand(variables, images)
    assert len(expected) == 13
    padded = jnp.concatenate([images, 100 * jnp.ones((2, 8, 8, 1))])
    mask = jnp.array([1.0] * 6 + [0.0] * 2)
    sums = jax.jit(lambda v, x, m: responses.moments(model, v, x, m))(variables, padded, mask)
    found = layers.in_order({name: responses._deviation(
        *(np.asarray(x, np.float64) for x in moments)) for name, moments in sums.items()})
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert len({round(value, 4) for value in found}) == 13


def by_hand(variables, x):
    """Standard deviations of the responses of a residual network with shortcuts of option A."""
    deviations = []

    def layer(path, name, x, stride=1, index=None):
        def part(kind, suffix):
            tree = variables[kind]
            for key in (*path, f'{suffix}{name}'):
                tree = tree[key]
            return tree if index is None else jax.tree.map(lambda leaf: leaf[index], tree)

        norm, running = part('params', 'norm'), part('batch_stats', 'norm')
        y = jax.lax.conv_general_dilated(
            x, part('params', 'conv')['kernel'], (stride, stride), [(1, 1), (1, 1)],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        y = (y - running['mean']) / np.sqrt(running['var'] + 1e-5) * norm['scale'] + norm['bias']
        deviations.append(float(np.std(np.asarray(y, np.float64))))
        return y

    x = jax.nn.relu(layer(('stem',), '', x))
    for stage in (1, 2, 3):
        for block in range(2):
            path = (f'stage{stage}', 'blocks' if block else 'block1')
            index, stride = (block - 1 if block else None), 2 if stage > 1 and not block else 1
            y = jax.nn.relu(layer(path, 1, x, stride, index))
            y = layer(path, 2, y, 1, index)
            short = x[:, ::stride, ::stride]
            missing = y.shape[-1] - x.shape[-1]
            x = jax.nn.relu(y + jnp.pad(short, ((0, 0),) * 3 + ((missing // 2,) * 2,)))
    return deviations


def test_layers_are_put_in_the_order_of_the_network():
    deviations = {'stage2/block1/norm1': np.array(6.0), 'stage1/blocks/norm1': np.array([2.0, 4.0]),
                  'stage1/blocks/norm2': np.array([3.0, 5.0]), 'stage1/block1/norm2': np.array(1.0),
                  'stem/norm': np.array(0.0)}
    assert layers.in_order(deviations) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(('config', 'fields', 'sentence'), [
    (imagenet_vgg16, {'model.batch_norm': False}, 'only residual networks that classify'),
    (digits, {'model.family': 'cifar_v2'}, 'blocks with pre-activation have it in front'),
    (digits, {'model.depth': 21}, r'model\.depth must be 6n \+ 2')])
def test_responses_of_other_networks_are_refused(config, fields, sentence):
    config = config.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=sentence):
        responses.check(config)


def test_networks_whose_classes_the_data_decides_have_responses():
    config = folder.get_config()
    config.model.depth = 18
    assert config.model.num_classes is None
    assert layers.network(config).stage_sizes == (2, 2, 2, 2)
    responses.check(config)
    assert config.model.num_classes is None


def test_responses_of_other_networks_in_a_ledger_are_refused(tmp_path, commands):
    write_lines(tmp_path / 'ledger.jsonl', [row(imagenet_vgg16.get_config, 30, 1.0, seed=0)])
    refused = commands.run('experiments.responses', f'--ledger={tmp_path}', '--depths=16')
    assert (refused.status, refused.output) == (1, '')
    assert re.fullmatch(r'error: only residual networks that classify [^\n]*\n', refused.errors)


@pytest.mark.parametrize('command', ['complexity', 'depth', 'first_step', 'responses'])
def test_a_file_as_workdir_is_refused_before_anything_is_run(tmp_path, commands, command):
    (tmp_path / 'file').write_text('')
    refused = commands.run(f'experiments.{command}', f'--workdir={tmp_path}/file')
    assert (refused.status, refused.output) == (1, '')
    assert refused.errors == f'error: --workdir={tmp_path}/file is a file, not a folder.\n'


def test_responses_are_compared_in_mean():
    groups = {(20, True): {0: [2.0, 4.0], 1: [2.2, 4.0]},
              (20, False): {0: [1.0, 2.0], 1: [1.1, 2.0]},
              (56, False): {0: [0.5, 1.0], 1: [0.5, 1.1]}}
    assert list(verdicts(responses.findings(groups)).values()) == [Verdict.HELD, Verdict.HELD]
    points = responses.average(groups)
    assert {'network': 'plain-20', 'depth': 20, 'kind': 'plain', 'order': 'sorted', 'layer': 1,
            'std': 4.0} in points
    assert len(points) == 12
