"""A network taken apart computes what it computes whole; and the command, from end to end."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import numpy as np
import pytest

import resnet_jax
from experiments import look
from experiments.seeing import blocks as blocks_lib
from experiments.seeing import images, lesion, projection, representation
from resnet_jax import config as config_lib
from resnet_jax.errors import UserError
from tests.printed import ROOT, as_printed
from tests.weights.networks import images as random_images
from tests.weights.networks import store

pytestmark = pytest.mark.slow

KINDS = {
    'scanned': {'depth': 14, 'unroll': False},
    'unrolled': {'depth': 14, 'unroll': True},
    'plain': {'depth': 8, 'plain': True, 'unroll': False},
    'bottleneck': {'family': 'imagenet', 'depth': 50, 'shortcut': 'B', 'width': 4,
                   'unroll': False},
}


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Random networks on grey images of 8 x 8 pixels, or coloured ones of 32 x 32, by kind."""
    found = {}
    for kind, changes in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        size, channels = (32, 3) if 'family' in changes else (8, 1)
        store(folder, size=size, channels=channels, **changes)
        found[kind] = resnet_jax.load(folder)
    return found


def pixels(network, count=7):
    size, channels = network.config.data.image_size, network.config.data.channels
    return random_images(count, size, size, channels)


@pytest.mark.parametrize('kind', KINDS)
def test_the_blocks_one_after_the_other_are_the_network(networks, kind):
    network = networks[kind]
    x = pixels(network)
    blocks = blocks_lib.blocks(network)
    out = blocks_lib.run_all(blocks, network.features(x, 'stem'))
    np.testing.assert_allclose(blocks_lib.classify(network, out), network.logits(x), rtol=2e-3,
                               atol=2e-3)
    sizes = network.model.stage_sizes
    assert [block.name for block in blocks] == [
        f'{i + 1}.{j + 1}' for i, size in enumerate(sizes) for j in range(size)]


@pytest.mark.parametrize('kind', KINDS)
def test_a_block_adds_its_branch_to_what_it_carries(networks, kind):
    network = networks[kind]
    x = network.features(pixels(network), 'stem')
    for block in blocks_lib.blocks(network)[:4]:
        made = blocks_lib.run(block.module, block.variables, x)
        total = made.branch if network.config.model.plain else made.carried + made.branch
        np.testing.assert_allclose(nn.relu(total), made.output, rtol=1e-5, atol=1e-5)
        if made.output.shape == x.shape and network.config.model.shortcut == 'A':
            np.testing.assert_array_equal(made.carried, x)
        x = np.asarray(made.output)


def test_a_deleted_block_is_one_whose_last_normalisation_gives_zero(networks):
    # By hand: the whole network once more, with gamma and beta of that block's branch at zero.
    network = networks['scanned']
    x = pixels(network)
    blocks = blocks_lib.blocks(network)
    stem = network.features(x, 'stem')
    for number, (stage, part, i) in ((1, ('stage1', 'blocks', 0)), (2, ('stage2', 'block1', ...)),
                                     (5, ('stage3', 'blocks', 0))):
        params = {**network.variables['params']}
        params[stage] = {**params[stage], part: {**params[stage][part]}}
        params[stage][part]['norm2'] = {
            name: np.array(leaf) for name, leaf in params[stage][part]['norm2'].items()}
        for leaf in params[stage][part]['norm2'].values():
            leaf[i] = 0
        expected = network.model.apply(
            {**network.variables, 'params': params},
            (x / 255 - network.normalization['mean']) / network.normalization['std'], train=False)
        before = blocks_lib.run_all(blocks[:number], stem)
        after = blocks_lib.run_all(blocks[number + 1:], blocks_lib.delete(blocks[number], before))
        np.testing.assert_allclose(blocks_lib.classify(network, after), expected, rtol=2e-3,
                                   atol=2e-3)


def test_swapping_is_the_network_with_the_blocks_in_another_order(networks):
    network = networks['scanned']
    x = pixels(network, 40)
    found = lesion.compute(network, images.Images(x, np.arange(40) % 10, network.classes))
    blocks = blocks_lib.blocks(network)
    assert set(found.swapped) == {(0, 1)}  # the first blocks of stages 2 and 3 change the shape
    order = [blocks[1], blocks[0], *blocks[2:]]
    out = blocks_lib.run_all(order, network.features(x, 'stem'))
    assert found.swapped[0, 1] == blocks_lib.error(network, out, np.arange(40) % 10)
    assert found.whole == 100 * np.mean(network.logits(x).argmax(1) != np.arange(40) % 10)


def test_many_blocks_share_one_compiled_program(networks):
    network = networks['unrolled']
    blocks_lib._output.clear_cache()
    blocks_lib.run_all(blocks_lib.blocks(network), network.features(pixels(network), 'stem'))
    # The first of stages 2 and 3, which change the shape, and the rest of each stage.
    assert blocks_lib._output._cache_size() == 5
    blocks_lib.run_all(blocks_lib.blocks(network), network.features(pixels(network), 'stem'))
    assert blocks_lib._output._cache_size() == 5


def test_angles_of_a_branch_that_is_known():
    carried = np.array([[[[3., 4.]]], [[[1., 0.]]]])
    branch = np.array([[[[4., -3.]]], [[[1., 0.]]]])
    ratio, branch_cosine, output_cosine = representation.angles(
        blocks_lib.Pass(carried, branch, np.maximum(carried + branch, 0)))
    np.testing.assert_allclose(ratio, [1, 1])
    np.testing.assert_allclose(branch_cosine, [0, 1], atol=1e-7)
    np.testing.assert_allclose(output_cosine, [np.sqrt(.5), 1], rtol=1e-6)


@pytest.fixture(scope='module')
def seen(networks):
    """What is measured of the plain network on digits."""
    config = config_lib.default()
    config.data.source, config.data.image_size, config.data.channels = 'digits', 8, 1
    network = networks['plain']
    test = images.choose(network, config, 60, held_out=True)
    train = images.choose(network, config, 80, held_out=False)
    return test, train, representation.measure(network, test, train)


def test_the_measures_are_of_the_right_steps(networks, seen):
    test, train, found = seen
    assert found.steps == ('pixels', 'stem', '1.1', '2.1', '3.1')
    assert found.cka.shape == (5, 5)
    np.testing.assert_allclose(np.diag(found.cka), 1)
    last = networks['plain'].features(test.pixels, 'stage3')
    from experiments.seeing import geometry, probe
    np.testing.assert_allclose(found.grams[-1], geometry.gram(last), rtol=1e-3, atol=1e-2)
    pooled = [networks['plain'].features(x.pixels, 'pool') for x in (train, test)]
    assert found.probe_mean[-1] == pytest.approx(
        probe.accuracy(pooled[0], train.labels, pooled[1], test.labels), abs=2)


def test_projections_keep_the_images_and_are_the_same_again(seen, monkeypatch):
    found = seen[2]
    # UMAP takes 20 s to compile; that it is called with a seed and a start is all we add to it.
    monkeypatch.setattr(projection, '_umap', lambda features, start: features[:, :2] + start)
    once, again = projection.compute(found), projection.compute(found)
    assert once.pca.shape == once.umap.shape == (5, 60, 2)
    np.testing.assert_array_equal(once.umap, again.umap)
    np.testing.assert_allclose(np.square(once.pca).sum(2).mean(1), 1)
    # Aligned: no rotation of a step brings it nearer to the step before.
    for before, after in zip(once.pca, once.pca[1:], strict=False):
        product = after.T @ before
        np.testing.assert_allclose(product, product.T, atol=1e-6)
        assert np.linalg.eigvalsh(product).min() > -1e-6


def test_networks_that_cannot_be_compared_are_told(networks):
    with pytest.raises(UserError, match='3 and 6 blocks'):
        look.named([networks['scanned'], networks['plain']], ['a', 'b'])
    with pytest.raises(UserError, match=r'data.channels is 3 and 1'):
        look.named([networks['scanned'], networks['bottleneck']], ['a', 'b'])


def test_without_data_the_command_says_what_to_give(tmp_path, commands):
    store(tmp_path / 'weights', channels=1, size=8)
    result = commands.run('experiments.look', tmp_path / 'weights')
    assert result.status == 1
    assert result.errors == (  # as evaluate says it
        f'error: {tmp_path}/weights does not say which data to evaluate on; pass --config=FILE '
        'and, for a folder of images, --config.data.path=DIR.\n')


def test_report_numbers_and_figures_are_written(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, '_umap', lambda features, start: features[:, :2] + start)
    config = config_lib.default()
    config.data.source, config.data.image_size, config.data.channels = 'digits', 8, 1
    found = look.look({'plain': networks['plain']}, config, 40, 60, [look.BLOCKS])
    look.write(tmp_path, look.title(networks['plain']), found)
    numbers = json.loads((tmp_path / 'numbers.json').read_text())
    assert numbers['facts']['images'] == '40 held out; 60 for the probes'
    assert numbers['Deleting and swapping blocks'].keys() >= {'error_plain'}
    heads, *rows = numbers['tables']['deletion']
    assert heads == ['block', 'error without it, plain (%)'] and len(rows) == 3
    report = (tmp_path / 'report.html').read_text()
    assert len(report) < 8e6 and 'What plain-8 has learnt' in report
    assert all(sentence.split(':')[0] in report for sentence in found.paragraphs)
    figures = {path.name for path in (tmp_path / 'figures').iterdir()}
    assert {'cka.svg', 'cka.png', 'journey_stills.svg', 'deletion.png'} <= figures


def test_only_some_of_the_sections_are_made(networks, tmp_path):
    config = config_lib.default()
    config.data.source, config.data.image_size, config.data.channels = 'digits', 8, 1
    found = look.look({'plain': networks['plain']}, config, 40, 60, ['filters'])
    assert [section.title for section in found.sections] == ['First-layer filters']
    look.write(tmp_path, look.title(networks['plain']), found)
    report = (tmp_path / 'report.html').read_text()
    assert 'First-layer filters</h2>' in report and 'summary-title' not in report


def test_a_part_that_does_not_exist_is_named(tmp_path, commands):
    result = commands.run('experiments.look', tmp_path, '--only=filters,grad')
    assert result.status == 1
    assert "--only must name some of blocks, filters" in result.errors


@pytest.mark.long
def test_the_command_looks_at_two_networks(tmp_path):
    for name, plain in (('digits_r20', False), ('digits_plain', True)):
        store(tmp_path / 'runs' / name, channels=1, size=8, plain=plain, unroll=False)
    words = as_printed(
        'python -m experiments.look runs/digits_r20 --plain=runs/digits_plain',
        f'--config={ROOT}/configs/digits_r20.py --config.compilation_cache= --images=40 '
        '--train_images=60 --output=out')
    result = subprocess.run([sys.executable, '-m', *words], capture_output=True, text=True,
                            cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    report = (tmp_path / 'out' / 'report.html').read_text()
    assert len(report) < 8e6 and 'What ResNet-8 has learnt' in report
