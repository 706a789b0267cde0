"""Detection as a task: its losses and outputs per image, on any mesh, through the ordinary loop."""

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from configs import scenes_r20
from resnet_jax.data import Item, scenes
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection import task
from resnet_jax.training import loop
from resnet_jax.training.program import build
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests import runs
from tests.conftest import ROOT
from tests.tasks.detection import few_scenes, tiny_detector
from tests.training.test_faults import build_once

CONFIG = ROOT / 'tests' / 'tasks' / 'detection' / 'tiny_detector.py'


def program_of(config):
    return build(config, sharding.create_mesh(config))


@functools.cache
def one_batch():
    """A program with frozen statistics, its state, and a training batch."""
    config = tiny_detector.get_config()
    config.init.freeze_bn = True
    program = program_of(config)
    state = program.initial_state()
    batch = jax.jit(program.train_data.batch)(
        next(program.train_data.inputs(0)), state.step, state.normalization)
    return program, state, batch


@functools.cache
def loss_and_gradient():
    program, state, _ = one_batch()

    def loss(params, batch):
        total, _, sums = task.loss(program.model, {**state.variables, 'params': params}, batch,
                                   None, program.config)
        return total, sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def measured(batch):
    (_, sums), grads = loss_and_gradient()(one_batch()[1].params, batch)
    return {name: float(value) for name, value in sums.items()}, jax.device_get(grads)


def test_the_losses_of_an_image_do_not_depend_on_the_others_of_its_batch():
    *_, batch = one_batch()
    alone = [measured(batch | {'mask': jnp.arange(8) == i})[0] for i in range(8)]
    total = measured(batch)[0]
    assert total['count'] == 8 and len({sums['class_loss'] for sums in alone}) == 8
    for name in ('loss', *task.LOSSES):
        assert sum(sums[name] for sums in alone) == pytest.approx(total[name], rel=1e-5)
    # The first image with others behind it.
    moved = jax.tree.map(lambda x: jnp.concatenate([x[:1], jnp.roll(x[1:], 3, 0)]), batch)
    again = measured(moved | {'mask': jnp.arange(8) == 0})[0]
    assert again == pytest.approx(alone[0], rel=1e-5)


def test_without_any_object_all_is_finite():
    *_, batch = one_batch()
    sums, grads = measured(batch | {'present': jnp.zeros_like(batch['present'])})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, grads)))
    assert sums['box_loss'] == sums['proposal_box_loss'] == 0
    assert sums['class_loss'] > 0 and sums['proposal_score_loss'] > 0  # all is background


@pytest.mark.parametrize('box', [(5, 5, 5, 9), (9, 9, 3, 3), (0, 0, 1e-9, 1e-9), (0, 0, 0.3, 31)])
def test_a_box_of_hardly_any_area_makes_nothing_infinite(box):
    *_, batch = one_batch()
    sums, grads = measured(batch | {'boxes': batch['boxes'].at[:, 0].set(jnp.array(box))})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, grads)))


def test_an_ignored_object_is_neither_learnt_nor_background():
    *_, batch = one_batch()
    ignored = measured(batch | {'ignore': jnp.ones_like(batch['ignore'])})[0]
    absent = measured(batch | {'present': jnp.zeros_like(batch['present'])})[0]
    assert ignored['box_loss'] == 0
    # What lies within an ignored object is not drawn as background.
    assert ignored['class_loss'] != absent['class_loss']


def losses_of(config, steps=3):
    """Losses of some steps in float64, and the parameters after them."""
    reports, params = runs.in_float64(config, steps)
    return np.array([[report[name] for name in task.LOSSES] for report in reports]), params


@functools.cache
def losses_of_one():
    return losses_of(tiny_detector.get_config())


@pytest.mark.slow
@pytest.mark.parametrize(('devices', 'parts'), [(8, 1), (1, 2)])
def test_eight_devices_and_accumulation_give_the_losses_of_one(devices, parts):
    config = tiny_detector.get_config()
    config.mesh.data, config.optimizer.accumulation_steps = devices, parts
    losses, params = losses_of(config)
    expected, expected_params = losses_of_one()
    assert len(np.unique(expected)) == expected.size
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
                 params, expected_params)


@pytest.fixture(scope='module')
def built():
    """What the runs share; see `build_once`."""
    return {}


@pytest.fixture(scope='module')
def finished(tmp_path_factory, built):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch:
        build_once(patch, built)
        loop.train(tiny_detector.get_config(), workdir)
    return workdir


def test_the_log_has_all_losses_and_the_evaluation_average_precision(finished):
    rows = read_rows(finished / 'metrics.jsonl')
    logged = next(row for row in rows if row['step'] == 4)
    assert logged['train/loss'] == pytest.approx(
        sum(logged[f'train/{name}'] for name in task.LOSSES), rel=1e-5)
    last = {tag for row in rows for tag in row if tag.startswith('eval/')}
    assert last >= {'eval/ap', 'eval/ap50', 'eval/ap75', 'eval/ap_small', 'eval/ar100',
                    'eval/count'}
    assert rows[-1]['eval/count'] == 8


def test_stopped_and_resumed_it_gives_the_same_bits(finished, built, tmp_path, monkeypatch):
    build_once(monkeypatch, built)
    runs.stop_at(monkeypatch, 3)
    with pytest.raises(loop.Stopped, match='checkpoint saved at step 3'):
        loop.train(tiny_detector.get_config(), tmp_path / 'run')
    loop.train(tiny_detector.get_config(), tmp_path / 'run')
    jax.tree.map(np.testing.assert_array_equal, stored.read(tmp_path / 'run').variables,
                 stored.read(finished).variables)


@pytest.mark.slow
def test_killed_and_resumed_it_gives_the_same_bits(commands, tmp_path):
    def arguments(name):
        return 'resnet_jax.main', f'--config={CONFIG}', f'--workdir={tmp_path}/{name}'

    process = commands.start(*arguments('killed'))
    process.until((tmp_path / 'killed' / 'checkpoints' / '2').exists)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    resumed = commands.run(*arguments('killed'))
    assert resumed.status == 0 and 'resuming from step' in resumed.output
    assert commands.run(*arguments('whole')).status == 0
    jax.tree.map(np.testing.assert_array_equal, stored.read(tmp_path / 'killed').variables,
                 stored.read(tmp_path / 'whole').variables)


def test_a_detector_is_loaded_and_finds_boxes_in_pixels_of_each_image(finished):
    detector = resnet_jax.load(finished)
    assert detector.classes == tuple(map(str, range(10)))
    image = few_scenes.eight().images[0]
    large = np.asarray(Image.fromarray(image[..., 0]).resize((128, 128), 0))[..., None]
    one = detector.predict(image)
    assert one.xyxy.shape == (len(one.scores), 4) and (np.diff(one.scores) <= 0).all()
    assert one.class_id.dtype == np.int32
    # The same canvas, of an image four times as large.
    canvas = detector.load(Item(image, {}, 'small'))
    assert detector.load(Item(large, {}, 'large'))['original'].tolist() == [128, 128]
    found, = detector.find(jax.tree.map(
        lambda x: x[None], canvas | {'original': np.array([128, 128], np.int32)}))
    np.testing.assert_allclose(found.boxes, 4 * one.xyxy, rtol=1e-5)
    np.testing.assert_array_equal(found.scores, one.scores)
    assert len(detector.predict([image, large])) == 2
    picture = detector.draw(large, least_score=0.0)
    assert isinstance(picture, Image.Image) and min(picture.size) >= 128
    with pytest.raises(ValueError, match=r'images must be uint8 \[H, W, 1\], got float'):
        detector.predict([image / 255])


def test_files_are_predicted_and_drawn(finished, commands, tmp_path):
    for i in range(2):
        Image.fromarray(few_scenes.eight().images[i][..., 0]).save(tmp_path / f'{i}.png')
    result = commands.run(
        'resnet_jax.predict', f'--checkpoint={finished}', '--json', '--min_score=0.05',
        f'--draw={tmp_path}/drawn', tmp_path / '0.png', tmp_path / 'none.png', tmp_path / '1.png')
    assert result.status == 1 and 'none.png cannot be read' in result.errors
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [row['file'] for row in rows] == [f'{tmp_path}/0.png', f'{tmp_path}/1.png']
    for found in (found for row in rows for found in row['detections']):
        assert set(found) == {'box', 'name', 'index', 'score'} and found['score'] >= 0.05
        assert 0 <= found['box'][0] < found['box'][2] <= 32
    drawn = sorted((tmp_path / 'drawn').iterdir())
    assert [path.name for path in drawn] == ['0.png', '1.png']
    assert min(Image.open(drawn[0]).size) >= 320


@pytest.mark.parametrize(('changed', 'sentence'), [
    ({'data.source': 'digits', 'data.image_size': 8}, 'digits/train/0 has no boxes, which task'),
    ({'data.max_objects': 1}, 'an image has 2 objects, but data.max_objects is 1; pass --config'),
    ({'model.num_classes': 4}, 'has 10 classes, but model.num_classes is 4'),
    ({'schedule.name': 'plateau', 'schedule.plateau_window': 3}, 'schedules that watch'),
    ({'data.canvases': ((64, 32),), 'steps_per_call': 2}, 'steps_per_call must be 1 with data.can'),
    ({'data.canvases': (64, 32)}, r'data.canvases must be sizes \(height, width\), such as'),
    ({'model.family': 'vgg', 'model.depth': 16}, 'a detector needs a residual network'),
    ({'model.detector.preset': 'yolo'}, 'model.detector.preset must be one of detectron2, paper'),
    ({'model.stochastic_depth': 0.1}, 'model.stochastic_depth must be 0 for a detector, got 0.1'),
    ({'eval.metric': 'voc'}, 'eval.metric must be one of coco, voc07, voc12'),
])
def test_mistakes_are_one_sentence_before_anything_is_compiled(changed, sentence):
    config = tiny_detector.get_config()
    config.update_from_flattened_dict(changed)
    with pytest.raises(UserError, match=sentence):
        program_of(config)


@pytest.mark.slow
def test_eight_scenes_are_learnt_by_heart(tmp_path, monkeypatch):
    images, labels = scenes.ink('train')
    made = [scenes.scene(images, labels, scenes.generator('train', i), 64, (4, 8))
            for i in range(8)]
    source = scenes.ObjectArrays([x.image for x in made], [x.boxes for x in made],
                                 [x.classes for x in made], 'few', [str(i) for i in range(10)])
    monkeypatch.setattr(few_scenes, 'create', lambda config, split: source)
    config = scenes_r20.get_config()
    config.init.checkpoint = ''
    config.data.source = 'tests.tasks.detection.few_scenes'
    config.batch_size = config.eval.batch_size = 8
    config.mesh.data = 1
    config.num_steps = 320
    assert loop.train(config, tmp_path / 'run')['eval/ap'] > 95
