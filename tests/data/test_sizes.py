"""Images need not be square: (height, width) in configs, training, evaluation and the commands."""

import json

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

import resnet_jax
from resnet_jax import cli, data
from resnet_jax import config as config_lib
from resnet_jax.data import sizes, statistics
from resnet_jax.data.synthetic import synthetic
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification import inference
from resnet_jax.tasks.classification.stablehlo import stablehlo
from resnet_jax.training import loop
from resnet_jax.training.costs import summarize
from resnet_jax.weights import stored
from tests import tiny
from tests.weights.networks import store

CONFIG = '--config=configs/digits_r20.py'


def tiny_run(pipeline, num_steps):
    new = tiny.config()
    new.update_from_flattened_dict({
        'num_steps': num_steps, 'batch_size': 16, 'eval.every_steps': None, 'eval.batch_size': 128,
        'checkpoint.every_steps': None, 'log.every_steps': 1, 'model.width': 4,
        'data.source': 'synthetic', 'data.image_size': (8, 12), 'data.channels': 3,
        'data.crop_padding': 1, 'data.flip': True, 'data.normalization': 'per_pixel_mean',
        'data.pipeline': pipeline})
    return new


def mesh():
    return Mesh(jax.devices()[:1], 'data')


@pytest.mark.slow
@pytest.mark.parametrize('pipeline', ['host', 'resident'])
def test_a_run_on_images_that_are_not_square_resumes_with_the_same_bits(tmp_path, pipeline):
    loop.train(tiny_run(pipeline, 2), tmp_path / 'straight')
    for num_steps in (1, 2):
        loop.train(tiny_run(pipeline, num_steps), tmp_path / 'resumed')
    straight, resumed = (stored.read(tmp_path / name) for name in ('straight', 'resumed'))
    jax.tree.map(np.testing.assert_array_equal, straight.variables, resumed.variables)
    content = json.loads((tmp_path / 'straight' / 'config.json').read_text())
    assert content['data']['image_size'] == [8, 12]


def test_a_network_that_is_not_square_is_evaluated_exported_and_described(tmp_path):
    store(tmp_path, size=(8, 12), width=4)
    network = resnet_jax.load(tmp_path)
    assert 'input 8 x 12 x 3' in repr(network)
    source = synthetic('test', (8, 12), 10)
    found = {protocol: inference.predict(
        [network], source, Views(protocol, (8, 12), resize), 64).log_probabilities
        for protocol, resize in (('center_crop', 8), ('ten_crop', 9))}
    logits = network.logits(source.images[:64])
    np.testing.assert_allclose(np.exp(found['center_crop'][:64]),
                               np.asarray(jax.nn.softmax(logits)), atol=1e-5)
    assert 0 < np.abs(found['ten_crop'] - found['center_crop']).max() < 5
    call = export.deserialize(stablehlo(network, {'image_size': (8, 12)})).call
    np.testing.assert_allclose(call(source.images[:64]), logits, atol=1e-4)
    shapes = {stage['name']: stage['shape'] for stage in summarize(network.config)['stages']}
    assert (shapes['stage1'], shapes['stage3']) == ([8, 12, 4], [2, 3, 16])


@pytest.mark.parametrize(('text', 'size', 'stored'), [
    ('224', (224, 224), 224), ('(224, 320)', (224, 320), [224, 320]),
    ('(224,224)', (224, 224), 224), ('320, 224', (320, 224), [320, 224])])
def test_a_size_is_a_number_or_a_pair_on_the_command_line_and_in_json(text, size, stored):
    config = cli.read_config([CONFIG, f'--config.data.image_size={text}'])
    assert data.image_size(config.data) == size
    content = json.loads(config.to_json())
    assert content['data']['image_size'] == stored
    again, unknown = config_lib.from_stored(content)
    assert data.image_size(again.data) == size
    assert (unknown, config_lib.differences(config, config_lib.leaves(again))) == ([], [])


def test_a_square_given_as_a_pair_is_the_same_config():
    config = cli.read_config([CONFIG])
    stored = config_lib.leaves(config)
    config.data.image_size = (8, 8)
    assert config_lib.differences(config, stored) == []
    config.data.image_size = (8, 9)
    assert config_lib.differences(config, stored) == ['data.image_size: 8 -> [8, 9]']
    assert cli.read_config([CONFIG, '--config.data.image_size=none']).data.image_size is None


@pytest.mark.parametrize('value', [0, -3, 2.5, True, (8,), (8, 0), (8, 9, 10), (8, '9'), 'large',
                                   (True, 8)])
def test_what_is_no_size_is_one_sentence(value):
    config = config_lib.default()
    config.data.image_size = value
    with pytest.raises(UserError, match=r'data\.image_size must be at least 1, one number or a '
                                        r"pair '\(height, width\)'; got "):
        data.image_size(config.data)


def test_what_is_no_number_is_one_sentence_on_the_command_line():
    with pytest.raises(UserError, match=r"image_size=large: must be a number, or '\(height, width"):
        cli.read_config([CONFIG, '--config.data.image_size=large'])
    config = config_lib.default()
    with pytest.raises(UserError, match=r'data.image_size is not set; pass --config'):
        data.image_size(config.data)


@pytest.mark.parametrize(('field', 'value', 'sentence'), [
    ('crop_padding', 8, r'crop_padding=8 must be less than data\.image_size=8 x 12'),
    ('eval_resize', 7, r'eval_resize=7 must not be less than data\.image_size=8 x 12'),
    ('jitter_sides', (7, 9), r'jitter_sides=7 must not be less than data\.image_size=8 x 12')])
def test_lengths_are_compared_with_the_shorter_side(field, value, sentence):
    wrong = tiny_run('auto', 1)
    wrong.data.train_crop = 'scale_jitter' if field == 'jitter_sides' else 'pad'
    wrong.data[field] = value
    with pytest.raises(UserError, match=sentence):
        data.check_config(wrong)
    wrong.data[field] = (8, 9) if field == 'jitter_sides' else value + (
        -1 if field == 'crop_padding' else 1)
    data.check_config(wrong)


def test_the_mean_image_of_a_folder_is_as_wide_as_the_crops(config_of_folder):
    train, test, norm = data.create_pipelines(config_of_folder, mesh())
    assert train.image_shape == test.image_shape == (20, 28, 3)
    assert train.input_shapes['image'].shape == (8, 20, 28, 3)
    assert norm['mean'].shape == (20, 28, 3)
    transform = EvalTransform((20, 28), 20)
    pixels = np.stack([transform.pixels(train.source[i]) for i in range(30)])
    np.testing.assert_allclose(norm['mean'], pixels.mean(0) / 255, rtol=1e-6)
    assert statistics.measure(train.source, transform, '', skip_unreadable=False).mean_image.shape


@pytest.fixture
def config_of_folder(config):
    config.data.update(image_size=(20, 28), normalization='per_pixel_mean')
    return config


def test_caches_know_squares_as_before():
    assert EvalTransform((24, 24), 28).key == EvalTransform(24, 28).key == (24, 28)
    assert EvalTransform((24, 32), 28).key == ((24, 32), 28)
    assert sizes.text(24) == '24' and sizes.text((24, 32)) == '24 x 32'
