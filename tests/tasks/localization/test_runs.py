"""Localizers are trained, evaluated and predicted by the commands, on one device and on eight."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import weights
from resnet_jax.data import create_source
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.tasks.loading import load_all
from resnet_jax.tasks.localization import testing
from resnet_jax.tasks.localization.task import TASK
from resnet_jax.tasks.prediction import predictions
from resnet_jax.training import loop
from resnet_jax.training.evaluation import evaluate
from resnet_jax.training.program import build
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests.tasks.localization import few_boxes

OPTIONS = {'protocol': None, 'scales': None, 'batch_size': None}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return few_boxes.write(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    loop.train(few_boxes.config(folder), workdir)
    return workdir


@pytest.fixture(scope='module')
def random_network(folder, tmp_path_factory):
    """A localizer with random weights that are far from symmetric."""
    config, path = few_boxes.config(folder), tmp_path_factory.mktemp('random')
    program = build(config, sharding.create_mesh(config))
    state = jax.device_get(program.initial_state())
    variables = dict(state.variables)
    kernel = variables['params']['localizer']['score']['kernel']
    variables['params']['localizer']['score']['kernel'] = 30 * kernel
    stored.write(path, weights.Weights(program.config, variables, state.normalization, ''))
    return resnet_jax.load(path)


def test_a_run_reports_the_errors_of_all_images(trained):
    rows = read_rows(trained / 'metrics.jsonl')
    found = next(row for row in rows if 'eval/count' in row)
    assert found['eval/count'] == 24
    assert 0 <= found['eval/mean_iou'] <= 100
    assert found['eval/top5_localization_error'] >= found['eval/localization_error']
    assert {'train/class_loss', 'train/score_loss', 'train/box_loss'} <= {
        tag for row in rows for tag in row}


def test_evaluate_measures_the_same_and_the_centre_box_beside_it(trained):
    reported = next(row for row in read_rows(trained / 'metrics.jsonl') if 'eval/count' in row)
    report = evaluate([str(trained)], None, 0, OPTIONS, [])
    for tag, value in reported.items():
        if tag.startswith('eval/'):
            assert report.values[tag] == pytest.approx(value, abs=1e-3), tag
    assert 0 < report.values['eval/baseline_error'] < 100
    assert report.text.startswith('localization error, true class ')
    dense = evaluate([str(trained)], None, 0,
                     {**OPTIONS, 'protocol': 'multi_scale', 'scales': ['32', '64']},
                     ['protocol', 'scales'])
    assert dense.values['eval/count'] == 24
    with pytest.raises(UserError, match='--protocol must be center_crop or multi_scale'):
        evaluate([str(trained)], None, 0, {**OPTIONS, 'protocol': 'ten_crop'}, ['protocol'])
    with pytest.raises(UserError, match='evaluated one at a time'):
        evaluate([str(trained)] * 2, None, 0, OPTIONS, [])


def test_an_image_is_located_alike_in_any_batch_and_by_every_code(random_network, folder):
    config = few_boxes.config(folder)
    source = create_source(config, 'test')
    images = [np.array(Image.open(file)) for file in source.files[:7]]
    together = random_network.predict(images)
    alone = random_network.predict(images[2:3])
    np.testing.assert_allclose(together.boxes[2], alone.boxes[0], atol=1e-3)
    np.testing.assert_allclose(together.probabilities[2], alone.probabilities[0], atol=1e-5)
    tested = testing.run(random_network, source, [random_network.transform.crop], 8, None,
                         skip_unreadable=False)
    for i in range(7):
        truth, label = source.target(i)['boxes'], int(source.labels[i])
        assert tested.overlap[i] == pytest.approx(
            testing.baseline.best_overlap(together.boxes[i, label], truth), abs=1e-4)
        assert tested.classes[i, 0] == together.probabilities[i].argmax()


def test_boxes_are_in_pixels_of_the_file(random_network):
    """The central crops of these images are the same pixels."""
    square, wide, doubled = (random_network.predict([image]) for image in [
        np.full((*shape, 3), 90, np.uint8) for shape in ((32, 32), (32, 48), (64, 96))])
    np.testing.assert_allclose(2 * wide.boxes, doubled.boxes, atol=1e-3)
    # Those that do not end at the edge of the square image, which is the crop of the wide one.
    inside = (square.boxes > 0) & (square.boxes < 32)
    assert inside.sum() > 4
    np.testing.assert_allclose((wide.boxes - [8, 0, 8, 0])[inside], square.boxes[inside], atol=1e-3)
    assert (wide.boxes >= 0).all() and (wide.boxes <= [48, 32, 48, 32]).all()


def test_predict_names_classes_with_boxes_and_draws_the_best(trained, folder, tmp_path):
    task, networks = load_all([trained])
    predictor = task.predictor(networks, {'top': 3})
    names = [str(folder / 'val' / 'class0' / f'{i}.png') for i in range(2)]
    answers = [answer for _, answer in predictions(predictor, [(name, None) for name in names])]
    fields = json.loads(json.dumps(answers[0].fields))['classes']
    assert len(fields) == 3 and set(fields[0]) == {'index', 'name', 'probability', 'box', 'score'}
    assert fields[0]['name'].startswith('class') and len(fields[0]['box']) == 4
    assert fields[0]['probability'] >= fields[1]['probability'] and ' at ' in answers[0].lines[0]
    image = np.array(Image.open(names[0]))
    picture = np.array(predictor.draw(image, answers[0]))
    plain = image.repeat(10, 0).repeat(10, 1)
    assert picture.shape == (320, 320, 3) and 0 < (picture != plain).any(-1).mean() < 0.5
    with pytest.raises(UserError, match='predict one at a time'):
        task.predictor(networks * 2, {'top': 3})


def test_a_classifier_starts_it_and_keeps_its_head(folder, tmp_path):
    config = few_boxes.config(folder)
    config.task, config.data.source, config.num_steps = 'classification', 'folder', 1
    loop.train(config, tmp_path / 'classifier')
    config = few_boxes.config(folder)
    config.init.update(checkpoint=str(tmp_path / 'classifier'), new_head=False)
    state = jax.device_get(build(config, sharding.create_mesh(config)).initial_state())
    given = stored.read(tmp_path / 'classifier').variables['params']
    for part in given:
        jax.tree.map(np.testing.assert_array_equal, state.params[part], given[part])
    assert set(state.params) == {*given, 'localizer'}
    config.init.new_head = True
    state = jax.device_get(build(config, sharding.create_mesh(config)).initial_state())
    assert np.abs(state.params['head']['kernel'] - given['head']['kernel']).max() > 1e-3


def loss_and_gradient(config):
    program = build(config, sharding.create_mesh(config))
    state = program.initial_state()
    feed = program.train_data.inputs(0)
    batch = program.train_data.batch(next(feed), np.int32(0), state.normalization)
    feed.close()

    def loss(params):
        total, _, metrics = TASK.loss(
            program.model, {'params': params, 'batch_stats': state.batch_stats}, batch,
            jax.random.key(0), config)
        return total, metrics

    gradient, sums = jax.jit(jax.grad(loss, has_aux=True))(state.params)
    evaluated, _ = jax.jit(lambda: TASK.evaluate(program.model, state.variables, batch, config))()
    sums, evaluated = ({name: float(x) for name, x in tree.items()} for tree in (sums, evaluated))
    return jax.device_get(gradient), sums, evaluated


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes(folder):
    one, eight = few_boxes.config(folder), few_boxes.config(folder)
    for config in (one, eight):
        config.batch_size, config.model.virtual_batch_size = 16, 2
    eight.mesh.data = 8
    (grad, sums, tested), (grads, others, also) = map(loss_and_gradient, (one, eight))
    assert sums == pytest.approx(others, rel=1e-4) and sums['box_loss'] > 0
    assert tested == pytest.approx(also, rel=1e-4)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grad))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), grad, grads)


@pytest.mark.slow
def test_it_finds_coloured_boxes(tmp_path):
    """Far better than a box in the centre, in 300 steps from random weights; 19 % were seen."""
    path = few_boxes.write(tmp_path / 'data', per_class=40)
    config = few_boxes.config(path, num_steps=300, batch_size=32)
    config.model.localizer.anchor_sizes = (12, 18)
    config.schedule.update(name='cosine', learning_rate=0.05)
    loop.train(config, tmp_path / 'run')
    values = evaluate([str(tmp_path / 'run')], None, 0, OPTIONS, []).values
    assert values['eval/baseline_error'] > 50
    assert values['eval/localization_error'] < 30
    assert values['eval/top5_error'] < 5
