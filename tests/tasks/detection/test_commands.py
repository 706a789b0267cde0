"""Commands on detectors: cost, export, compilation without data, and a classifier as the start."""

import jax
import numpy as np
import pytest
from jax import export
from safetensors.numpy import save_file

import resnet_jax
from configs import coco_r50_c4, scenes_r20
from resnet_jax import summary, weights
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection.stablehlo import stablehlo
from resnet_jax.training import compiled, costs, loop
from resnet_jax.training.program import build
from resnet_jax.weights import stored
from resnet_jax.xla import topologies
from tests.weights import random_weights
from tests.weights.networks import images


def tiny_config():
    """ResNet-8 of 8 filters on scenes."""
    config = scenes_r20.get_config()
    config.init.checkpoint = ''
    config.model.update(depth=8, width=8)
    config.model.detector.update(
        rpn_features=8, rpn_pre_nms=(40, 30), rpn_post_nms=(16, 12), rpn_batch=16, roi_batch=8,
        roi_size=4)
    config.data.image_size = 32
    config.mesh.data = 1
    config.compilation_cache = ''
    return config


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """The folder of a detector with random weights."""
    config, folder = tiny_config(), tmp_path_factory.mktemp('detector')
    program = build(config, sharding.create_mesh(config), blank=True)
    state = jax.device_get(program.initial_state())
    stored.write(folder, weights.Weights(
        program.config, state.variables, {'mean': np.float32([.4]), 'std': np.float32([.2])}, ''))
    return folder


def test_the_cost_of_a_detector_is_that_of_its_parts_times_their_runs():
    config = coco_r50_c4.get_config()
    found = costs.summarize(config)
    assert found['parameters'] == 33_844_764
    trunk, proposals, region = 66_937_651_200, 39_958_732_800, 732_989_440
    assert found['parts'] == {
        'trunk': {'multiply_adds': trunk, 'train_runs': 1, 'test_runs': 1},
        'proposals': {'multiply_adds': proposals, 'train_runs': 1, 'test_runs': 1},
        'region': {'multiply_adds': region, 'train_runs': 512, 'test_runs': 1000}}
    assert found['multiply_adds'] == trunk + proposals + 1000 * region
    stages = {stage['name']: stage['shape'] for stage in found['stages']}
    assert stages['stage3'] == [50, 84, 1024] and stages['stage4'] == [7, 7, 2048]
    assert stages['rpn/scores'] == [50 * 84 * 15] and stages['box/scores'] == [81]
    assert '732,989,440 each, 1,000 for an image; 512 in training' in summary.table(found)

    # Nothing but the forward pass runs through what is frozen.
    stem, stage1 = 200 * 336 * 4 * 49 * 3 * 64, 200 * 336 * (
        64 * 64 + 3 * 9 * 64 * 64 + 2 * 64 * 256 + 4 * 64 * 256)
    every = trunk + proposals + 512 * region
    assert found['train_flops'] == 6 * every - 4 * (stem + stage1)
    config.init.freeze = ()
    assert costs.summarize(config)['train_flops'] == 6 * every


def test_the_exported_program_finds_what_the_detector_finds(detector):
    network = resnet_jax.load(detector)
    program = export.deserialize(stablehlo(network, {'image_size': None}))
    assert set(program.platforms) == {'cpu', 'cuda', 'tpu'}
    sizes = np.array([[32, 32], [20, 32], [32, 7]], np.int32)
    batch = {'image': images(3, 32, 32, 1), 'size': sizes}
    found = jax.device_get(program.call(batch['image'], batch['size']))
    expected = network.find(batch | {'original': batch['size']})
    for i, (boxes, classes, scores, _) in enumerate(expected):
        valid = found['valid'][i]
        assert len(boxes) == valid.sum() > 10
        np.testing.assert_allclose(found['boxes'][i][valid], boxes, atol=1e-4)
        np.testing.assert_allclose(found['scores'][i][valid], scores, atol=1e-6)
        np.testing.assert_array_equal(found['classes'][i][valid], classes)


def test_a_detector_without_a_pyramid_has_no_form_in_other_projects(detector, tmp_path, commands):
    result = commands.run('resnet_jax.export', f'--checkpoint={detector}',
                          f'--output={tmp_path}/out.safetensors')
    assert result.status == 1 and result.errors.strip().endswith(
        'torchvision has no names for a detector without a feature pyramid; write a .stablehlo '
        'file, or train with model.detector.kind=fpn.')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('source', [pytest.param('coco', marks=pytest.mark.slow), 'voc'])
def test_devices_exchange_only_gradients_and_no_data_is_needed(source):
    config = tiny_config()
    config.mesh.data = -1
    config.init.freeze_bn = True
    config.data.update(source=source, path='/nowhere')
    result = compiled.report(config, topologies.create('cpu:8'))
    assert set(result['collectives']) == {'all-reduce'}
    total = result['collectives']['all-reduce']
    assert total['count'] == 1
    assert 4 * result['parameters'] < total['bytes'] < 4 * result['parameters'] * 1.05
    assert result['flops'] == pytest.approx(result['model_flops'], rel=0.5)


def test_a_converted_classifier_is_the_start_of_a_detector(tmp_path, capsys):
    model = random_weights.fields(depth=50, width=4)
    save_file(random_weights.tensors(model), tmp_path / 'resnet50.safetensors')
    read = weights.read(tmp_path / 'resnet50.safetensors')
    stored.write(tmp_path / 'weights', read)
    config = coco_r50_c4.get_config()
    config.model.update(width=4, dtype='float32', stride_in='v1.5', unroll=False)
    config.data.image_size = (64, 96)
    config.init.checkpoint = str(tmp_path / 'weights')
    program = build(config, sharding.create_mesh(config, jax.devices()[:1]), blank=True)
    start = program.initial_state()
    for stage in ('stem', 'stage1', 'stage4'):
        jax.tree.map(np.testing.assert_array_equal, start.params[stage],
                     read.variables['params'][stage])
    np.testing.assert_array_equal(start.normalization['mean'], read.normalization['mean'])
    printed = capsys.readouterr()
    assert 'loaded 145 arrays of ResNet-50 from ' in printed.out
    assert 'weights; not loaded: rpn, box, head' in printed.out
    # Neither the place of the stride nor the padding of the pooling show in any array.
    assert '--config.model.pool_pad=both.' in printed.err and 'stride_in' not in printed.err


def test_a_start_that_is_missing_is_told_before_the_data_is_read(tmp_path):
    config = scenes_r20.get_config()
    config.init.checkpoint = str(tmp_path / 'scenes_digits')
    with pytest.raises(UserError, match='scenes_digits; make these weights first, with the '
                                        'commands at the top of the config file'):
        loop.train(config, tmp_path / 'run')
    config = coco_r50_c4.get_config()
    with pytest.raises(UserError, match=r'init\.freeze_bn=True keeps the statistics of trained'):
        loop.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
