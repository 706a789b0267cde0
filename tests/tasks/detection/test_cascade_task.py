"""A cascade as a detector: its second round, its cost, its commands, and what it learns."""

import json

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from configs import coco_r50_c4, scenes_cascade_r20
from resnet_jax import summary
from resnet_jax.data import masks, scenes
from resnet_jax.models.detectors import Settings
from resnet_jax.tasks.detection import inference, losses, task
from resnet_jax.tasks.detection.losses import Regions
from resnet_jax.training import compiled, costs, loop
from resnet_jax.training.writers import read_rows
from resnet_jax.xla import topologies
from tests import runs
from tests.tasks.detection import few_scenes, tiny_cascade

NAMES = (*task.LOSSES, task.MASK_LOSS, *task.CASCADE_LOSSES)


def test_corrected_regions_are_matched_with_the_objects_again():
    boxes = np.float32([[4, 4, 12, 12], [16, 8, 28, 28]])
    crops = np.zeros((2, 112, 112), np.uint8)
    crops[0, :, :56], crops[1, 56:] = 1, 1  # the left half; the lower half
    batch = {'boxes': boxes[None], 'classes': np.int32([[3, 1]]), 'masks': crops[None],
             'ignore': np.zeros((1, 2), bool), 'present': np.ones((1, 2), bool)}
    settings = Settings(masks=True, roi_batch=5, roi_positive=0.4)
    regions = Regions(None, None, None, np.array([[True, True, False, False, False]]),
                      np.array([[True, True, True, True, False]]))
    now = np.float32([[[16, 8, 28, 28], [0, 0, 4, 4], [4, 4, 12, 12], [0, 20, 8, 30],
                       [4, 4, 12, 12]]])
    found = jax.jit(losses.corrected_regions, static_argnums=(0, 4, 5))(
        settings, regions, now, batch, 10, 4)
    # The first has another object, the second none, the third has one now; the last is padding.
    assert np.asarray(found.classes).tolist() == [[1, 10, 3, 10, 10]]
    assert np.asarray(found.positive).tolist() == [[True, False, True, False, False]]
    assert np.asarray(found.used).tolist() == [[True, True, True, True, False]]
    np.testing.assert_array_equal(found.targets[0, [0, 2]], boxes[[1, 0]])
    assert found.masks.shape == (1, 2, 4, 4)  # of int(5 * 0.4) regions
    assert np.asarray(found.masks[0, 0]).round(4).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2


def test_the_cost_is_that_of_two_rounds():
    config = coco_r50_c4.get_config()
    config.model.detector.update(masks=True, cascade=5)
    found = costs.summarize(config)
    # One mask in place of 80, and siblings that see twice as many features.
    assert found['parameters'] == 35_962_732 - 79 * 257 + 2048 * (81 + 320)
    head = 49 * 2048 * 4 * 256 + 196 * 256
    assert found['parts']['mask'] == {
        'multiply_adds': head, 'train_runs': 1024, 'test_runs': 2100}
    region = found['parts']['region']
    assert (region['train_runs'], region['test_runs']) == (1024, 2000)
    assert '2,000 for an image; 1,024 in training' in summary.table(found)


def losses_of(devices, parts, steps=2):
    """Losses of some steps in float64, and the parameters after them."""
    config = tiny_cascade.get_config()
    config.mesh.data, config.optimizer.accumulation_steps = devices, parts
    reports, params = runs.in_float64(config, steps)
    return np.array([[report[name] for name in NAMES] for report in reports]), params


@pytest.mark.slow
def test_eight_devices_give_the_losses_and_gradients_of_one():
    (found, params), (expected, expected_params) = losses_of(8, 1), losses_of(1, 1)
    assert np.isfinite(expected).all() and (expected > 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
                 params, expected_params)


@pytest.mark.slow
def test_devices_exchange_only_gradients():
    config = tiny_cascade.get_config()
    config.mesh.data = -1
    config.init.freeze_bn = True
    result = compiled.report(config, topologies.create('cpu:8'))
    assert {name: x['count'] for name, x in result['collectives'].items()} == {'all-reduce': 1}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The workdir of a tiny cascade."""
    workdir = tmp_path_factory.mktemp('cascade') / 'run'
    loop.train(tiny_cascade.get_config(), workdir)
    return workdir


@pytest.mark.slow
def test_it_is_trained_evaluated_exported_and_predicts(finished, commands, tmp_path):
    rows = read_rows(finished / 'metrics.jsonl')
    logged = next(row for row in rows if row['step'] == 4)
    assert logged['train/loss'] == pytest.approx(
        sum(logged[f'train/{name}'] for name in NAMES), rel=1e-5)
    measured = next(row for row in rows if 'eval/mask_ap' in row)
    result = commands.run('resnet_jax.evaluate', f'--workdir={finished}', '--json')
    assert result.status == 0, result.errors
    values = json.loads(result.output)
    for name in ('ap', 'mask_ap'):
        assert values[f'eval/{name}'] == pytest.approx(measured[f'eval/{name}'], abs=1e-3)

    result = commands.run('resnet_jax.evaluate', f'--workdir={finished}', '--json', '--refine',
                          '--protocol=multi_scale', '--scales=24,32')
    assert result.status == 0 and json.loads(result.output)['eval/mask_ap'] >= 0, result.errors

    image = few_scenes.eight().images[0]
    Image.fromarray(image[..., 0]).resize((48, 64)).save(tmp_path / '0.png')
    result = commands.run('resnet_jax.predict', f'--checkpoint={finished}', '--json',
                          '--min_score=0.05', f'--draw={tmp_path}', tmp_path / '0.png')
    found = json.loads(result.output)['detections']
    assert found and all(masks.decode(x['mask']).shape == (64, 48) for x in found)
    assert (tmp_path / '0_2.png').is_file()

    result = commands.run('resnet_jax.export', f'--checkpoint={finished}',
                          f'--output={tmp_path}/out.stablehlo')
    assert result.status == 0, result.errors
    program = export.deserialize(bytearray((tmp_path / 'out.stablehlo').read_bytes()))
    found = program.call(image[None], np.int32([[32, 32]]))
    assert found['masks'].shape[2:] == (4, 4) and bool(found['valid'].any())


def test_a_test_classifies_proposals_and_then_their_corrected_boxes():
    regions = np.float32([[[0, 0, 4, 4], [4, 4, 8, 8]]])
    valid = np.array([[True, False]])
    seen = []

    def classify(regions):
        seen.append(np.asarray(regions))
        probabilities = np.float32([[[0.1, 0.7], [0.6, 0.2]]])
        return probabilities, np.stack([regions + 1, regions + 2], 2)

    once = inference.in_rounds(1, classify, regions, valid)
    assert once[0].shape == (1, 2, 2) and once[2] is valid
    probabilities, boxes, both = inference.in_rounds(2, classify, regions, valid)
    corrected = regions + np.float32([[[2], [1]]])  # of the more probable class
    np.testing.assert_array_equal(seen[2], corrected)
    np.testing.assert_array_equal(boxes[:, 2:, 0], corrected + 1)
    assert probabilities.shape == (1, 4, 2)
    assert np.asarray(both).tolist() == [[True, False, True, False]]
    assert (Settings(cascade=3).rounds, Settings(cascade=5).rounds) == (1, 2)


@pytest.mark.slow
def test_eight_scenes_are_learnt_by_heart(tmp_path, monkeypatch):
    images, labels = scenes.ink('train')
    made = [scenes.scene(images, labels, scenes.generator('train', i), 64, (4, 8))
            for i in range(8)]
    source = scenes.ObjectArrays(
        [x.image for x in made], [x.boxes for x in made], [x.classes for x in made], 'few',
        [str(i) for i in range(10)], [x.instances for x in made])
    monkeypatch.setattr(few_scenes, 'create', lambda config, split: source)
    config = scenes_cascade_r20.get_config()
    config.init.checkpoint = ''
    config.data.source = 'tests.tasks.detection.few_scenes'
    config.batch_size = config.eval.batch_size = 8
    config.mesh.data = 1
    config.num_steps = 320
    measured = loop.train(config, tmp_path / 'run')
    assert measured['eval/ap'] > 90 and measured['eval/mask_ap'] > 50
