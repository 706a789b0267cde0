"""Converted weights and training runs are one format, and `resnet_jax.load` takes both."""

import dataclasses
import doctest
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

import resnet_jax
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.models import resnet, vgg
from resnet_jax.models.blocks import BottleneckBlock
from resnet_jax.training import loop, workdir
from resnet_jax.training.program import build
from resnet_jax.weights import stored
from resnet_jax.weights.checkpoints import Checkpoints
from tests import tiny
from tests.data.data_helpers import write_folder
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
    assert len(test.examples) == 9
    assert doctest.DocTestRunner().run(test).failed == 0


def test_importing_the_package_is_light():
    code = ('import sys, resnet_jax; '
            'print(sorted({"jax", "torch", "tensorflow", "numpy"} & set(sys.modules)))')
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == '[]\n'


@pytest.mark.slow
@pytest.mark.parametrize('ema', [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_a_run_is_loaded_and_says_what_it_was_evaluated_to(ema, tiny_config, tmp_path):
    tiny_config.num_steps, tiny_config.data.normalization = 10, 'per_pixel_mean'
    tiny_config.optimizer.ema_decay = ema
    tiny_config.model.virtual_batch_size = None
    values = loop.train(tiny_config, tmp_path)
    network = resnet_jax.load(tmp_path)
    from resnet_jax.data.digits import digits
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
    {'family': 'vgg', 'depth': 16, 'width': 2, 'batch_norm': True}])
def test_features_lead_to_the_scores(changes, tmp_path, monkeypatch):
    monkeypatch.setitem(resnet.IMAGENET, 50, (BottleneckBlock, (1, 1, 1, 1)))
    monkeypatch.setitem(vgg.STAGE_SIZES, 16, (1,) * 5)
    store(tmp_path, **changes)
    network = resnet_jax.load(tmp_path)
    size = 224 if changes.get('family') == 'vgg' else 64
    x = images(2, size, size, 3)
    head = network.variables['params']['head']
    pooled = network.features(x, 'pool')
    np.testing.assert_allclose(
        pooled @ head['kernel'] + head['bias'], network.logits(x), rtol=1e-3, atol=1e-4)
    last = network.features(x, network.stages[-2])
    np.testing.assert_allclose(last.mean((1, 2)), pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(network.features(x, 2), network.features(x, 'stage2'))
    if changes.get('family') == 'vgg':
        assert network.stages[-2:] == ('dense', 'pool')
        assert network.features(x, 'stage5').shape == (2, 7, 7, 16)
    maps = network.features(x)
    assert tuple(maps) == network.stages
    for stage, found in maps.items():
        np.testing.assert_allclose(found, network.features(x, stage), rtol=1e-4, atol=1e-5)
    assert network.features(x[0])['stage1'].shape == maps['stage1'].shape[1:]
    for wrong in ('stage9', 9, 0, 1.5):
        with pytest.raises(ValueError, match=r'stage must be one of .*stage1.*, pool, or the num'):
            network.features(x, wrong)


def test_a_network_is_shown_in_one_line(tmp_path):
    store(tmp_path, width=16)
    assert repr(resnet_jax.load(tmp_path)) == (
        'Classifier(ResNet-8, 10 classes, 75,290 parameters, input 32 x 32 x 3)')


@pytest.mark.parametrize('wrong', [
    np.zeros((2, 32, 32, 1), np.uint8), np.zeros((32, 32), np.uint8),
    np.zeros((0, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.int32)])
def test_wrong_images_are_told(wrong, tmp_path):
    store(tmp_path)
    with pytest.raises(ValueError, match='images must be'):
        resnet_jax.load(tmp_path).predict(wrong)


def test_weights_that_are_not_finite_are_neither_stored_nor_loaded(tmp_path):
    written = store(tmp_path / 'good')
    params = dict(written.variables['params'])
    params['head'] = {**params['head'], 'bias': np.full(10, np.nan, np.float32)}
    wrong = dataclasses.replace(
        written, variables={**written.variables, 'params': params},
        normalization={**written.normalization, 'std': np.full(3, np.inf, np.float32)})
    names = 'contains NaN or infinity in normalization/std, params/head/bias'
    with pytest.raises(UserError, match=f'the file of weights {names}'):
        stored.write(tmp_path / 'new', wrong)
    assert not (tmp_path / 'new').exists()
    checkpoints = Checkpoints(tmp_path / 'good' / 'checkpoints', keep_last=1)
    checkpoints.save(stored.weights_state(wrong.variables, wrong.normalization), 1)
    checkpoints.close()
    with pytest.raises(UserError, match=f'checkpoints/1 {names}'):
        resnet_jax.load(tmp_path / 'good')


def test_recalibrated_statistics_are_used_where_there_are_any(tmp_path):
    written = store(tmp_path)
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep_last=1)
    statistics = jax.tree.map(lambda x: x + 1, written.variables['batch_stats'])
    checkpoints.write_recalibrated(0, statistics)
    checkpoints.close()
    variables = resnet_jax.load(tmp_path).variables
    jax.tree.map(np.testing.assert_array_equal, variables['batch_stats'], statistics)
    jax.tree.map(np.testing.assert_array_equal, variables['params'], written.variables['params'])


def test_loading_gives_no_warning(tmp_path, caplog):
    store(tmp_path)
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        resnet_jax.load(tmp_path)
    finally:
        absl_logging.set_verbosity(absl_logging.WARNING)
    assert any(record.name == 'absl' for record in caplog.records)  # they are heard
    assert [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING] == []


def test_the_names_of_the_classes_of_a_folder_are_stored_with_its_run(tmp_path):
    """With either pipeline, and with images held out; WordNet ids by the names that they have."""
    names = ('cat', 'dog', 'n01440764')
    root = write_folder(tmp_path / 'images', names, images=4, size=(16, 16))
    for i, pipeline in enumerate(('resident', 'host')):
        config = tiny.config()
        config.update_from_flattened_dict({
            'data.source': 'folder', 'data.path': str(root), 'data.channels': 3,
            'data.image_size': 16, 'data.pipeline': pipeline, 'data.holdout': 3,
            'data.crop_padding': 0, 'model.num_classes': 3, 'batch_size': 8, 'data.cache': ''})
        run = tmp_path / str(i)
        run.mkdir()
        workdir.describe(build(config, sharding.create_mesh(config)), run)
        store(run, num_classes=3)
        assert resnet_jax.load(run).classes == ('cat', 'dog', 'tench, Tinca tinca')
    stored.write_classes(run, ('a\nb', os.fsdecode(b'\xff'), ''))
    assert resnet_jax.load(run).classes == ('a b', r'\xff', '')
    (run / 'classes.txt').write_text('cat\n')
    with pytest.raises(UserError, match=r'has 1 names for 3 classes'):
        resnet_jax.load(run)
    (run / 'classes.txt').write_bytes(b'\xff')
    with pytest.raises(UserError, match=r'classes\.txt cannot be read as text'):
        resnet_jax.load(run)


def test_a_name_of_the_hub_is_suggested_where_the_path_looks_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').mkdir()
    for path, hint in (('resnet50', True), ('timm/resnet50', True), ('runs/a', False),
                       ('runs/a/b', False), ('a/b/c', False), (tmp_path / 'a', False)):
        with pytest.raises(UserError) as raised:
            resnet_jax.load(path)
        assert str(raised.value) == f'there is no folder {path}' + (
            '; weights of the Hugging Face hub are named hf:OWNER/NAME.' if hint else '.')


def test_damage_is_told(tmp_path):
    store(tmp_path / 'a')
    file = tmp_path / 'resnet50.pth'
    file.write_bytes(b'')
    for path, told in ((tmp_path / 'nothing', 'there is no folder .*nothing\\.$'),
                       (tmp_path, 'holds no checkpoints'),
                       (file, f'is a file; .*resnet_jax.convert --input={file} --output=DIR`')):
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
    with pytest.raises(UserError, match='is damaged'):
        resnet_jax.load(tmp_path / 'a')
