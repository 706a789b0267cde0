"""Converted weights and training runs are one format, and `resnet_jax.load` takes both."""

import doctest
import subprocess
import sys

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import train
from resnet_jax.errors import UserError
from resnet_jax.weights import stored
from tests.weights.networks import images, store


def test_what_is_stored_is_read_back(tmp_path):
    written = store(tmp_path / 'a', classes=[f'class {i}' for i in range(10)])
    network = resnet_jax.load(tmp_path / 'a')
    jax.tree.map(np.testing.assert_array_equal, network.variables, written.variables)
    jax.tree.map(np.testing.assert_array_equal, network.normalization, written.normalization)
    assert network.config.to_json() == written.config.to_json()
    assert network.classes[3] == 'class 3'
    with pytest.raises(UserError, match='holds checkpoints already'):
        stored.write(tmp_path / 'a', written)


def test_the_docstring_of_load_holds(tmp_path):
    store(tmp_path, width=8)
    test = doctest.DocTestFinder().find(
        resnet_jax.load, globs={'resnet_jax': resnet_jax, 'np': np, 'workdir': tmp_path})[0]
    assert len(test.examples) == 7
    assert doctest.DocTestRunner().run(test).failed == 0


def test_importing_the_package_is_light():
    code = ('import sys, resnet_jax; '
            'print(sorted({"jax", "torch", "tensorflow", "numpy"} & set(sys.modules)))')
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == '[]\n'


@pytest.mark.parametrize('ema', [None, 0.5])
def test_a_run_is_loaded_and_says_what_it_was_evaluated_to(ema, tiny_config, tmp_path):
    tiny_config.num_steps, tiny_config.data.normalization = 10, 'per_pixel_mean'
    tiny_config.optimizer.ema_decay = ema
    tiny_config.model.virtual_batch_size = None
    values = train.train(tiny_config, tmp_path)
    network = resnet_jax.load(tmp_path)
    from resnet_jax.data.sources import digits
    test = digits('test')
    error = 100 * np.mean(network.predict(test.images).argmax(1) != test.labels)
    assert error == pytest.approx(values['eval/top1_error'], abs=1e-9)
    older = resnet_jax.load(tmp_path / 'checkpoints' / '5')
    assert not np.array_equal(older.predict(test.images[:4]), network.predict(test.images[:4]))


def test_predictions_depend_neither_on_the_batch_nor_on_the_type(tmp_path):
    store(tmp_path)
    network = resnet_jax.load(tmp_path)
    x = images(67, 16, 16, 3)
    together = network.predict(x)
    assert together.shape == (67, 10) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(together[66], network.predict(x[66]), rtol=1e-4)
    np.testing.assert_allclose(
        network.predict(x[:3].astype(np.float32) / 255), together[:3], rtol=1e-4)


@pytest.mark.parametrize('changes', [
    {}, {'family': 'imagenet', 'depth': 50, 'shortcut': 'B', 'width': 4},
    {'family': 'vgg', 'depth': 16, 'width': 2, 'batch_norm': False},
    {'family': 'vgg', 'depth': 16, 'width': 2, 'batch_norm': True}])
def test_features_lead_to_the_scores(changes, tmp_path):
    store(tmp_path, **changes)
    network = resnet_jax.load(tmp_path)
    size = 224 if changes.get('family') == 'vgg' else 64
    x = images(2, size, size, 3)
    head = network.variables['params']['head']
    pooled = network.features(x)
    np.testing.assert_allclose(
        pooled @ head['kernel'] + head['bias'], network.logits(x), rtol=1e-3, atol=1e-4)
    last = network.features(x, network.stages[-2])
    if changes.get('family') == 'vgg':
        assert last.shape == (2, 7, 7, 16) and (last >= 0).all()
    else:
        np.testing.assert_allclose(last.mean((1, 2)), pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(network.features(x, len(network.stages) - 1 - (
        network.stages[0] == 'stem')), last)
    for wrong in ('stage9', 9, 0, 1.5):
        with pytest.raises(ValueError, match=r'stage must be one of .*stage1.*, pool, or the num'):
            network.features(x, wrong)


def test_a_network_is_shown_in_one_line(tmp_path):
    store(tmp_path, width=16)
    assert repr(resnet_jax.load(tmp_path)) == (
        'Classifier(cifar, depth 8, 10 classes, 75,290 parameters, input 32 x 32 x 3)')


@pytest.mark.parametrize('wrong', [
    np.zeros((2, 32, 32, 1), np.uint8), np.zeros((32, 32), np.uint8),
    np.zeros((0, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.int32)])
def test_wrong_images_are_told(wrong, tmp_path):
    store(tmp_path)
    with pytest.raises(ValueError, match='images must be'):
        resnet_jax.load(tmp_path).predict(wrong)


def test_damage_is_told(tmp_path):
    store(tmp_path / 'a')
    for path, told in ((tmp_path / 'nothing', 'there is no folder'),
                       (tmp_path, 'holds no checkpoints')):
        with pytest.raises(UserError, match=told):
            resnet_jax.load(path)
    config = tmp_path / 'a' / 'config.json'
    good = config.read_text()
    for text in ('{', '[]', '{"model": {"depth": "x"}}', '{"model": {"family": "x"}}'):
        config.write_text(text)
        with pytest.raises(UserError, match=r'config\.json'):
            resnet_jax.load(tmp_path / 'a')
    config.write_text(good)
    data = max((tmp_path / 'a').rglob('d/*'), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match='cannot be read'):
        resnet_jax.load(tmp_path / 'a')
