"""The R-CNN of localization is trained, resumed, evaluated and predicted by the commands."""

import json
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.data import create_source
from resnet_jax.distributed import sharding
from resnet_jax.tasks.loading import load_all
from resnet_jax.tasks.localization import testing
from resnet_jax.tasks.prediction import predictions
from resnet_jax.training import loop
from resnet_jax.training.costs import summarize
from resnet_jax.training.evaluation import evaluate
from resnet_jax.training.program import build, completed
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests import runs
from tests.tasks.localization import few_boxes, few_rcnn

OPTIONS = {'protocol': None, 'scales': None, 'batch_size': None}
CONFIG = 'tests/tasks/localization/few_rcnn.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return few_boxes.write(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def localizer(folder, tmp_path_factory):
    """A run of the first step."""
    workdir = tmp_path_factory.mktemp('localizer')
    loop.train(few_boxes.config(folder, num_steps=2), workdir)
    return workdir


@pytest.fixture(scope='module')
def config(folder, localizer):
    return few_rcnn.config(folder, **{'init.checkpoint': str(localizer)})


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp('rcnn')
    loop.train(config, workdir)
    return workdir


@pytest.mark.slow
def test_the_proposal_network_keeps_every_bit_and_the_second_one_is_trained(localizer, trained):
    first, both = stored.read(localizer).variables, stored.read(trained).variables
    for name, parts in first.items():
        for part, tree in parts.items():
            jax.tree.map(np.testing.assert_array_equal, both[name][part], tree)
    for name in ('params', 'batch_stats'):
        for part in ('stem', 'stage3'):
            changed = jax.tree.map(lambda a, b: bool((a != b).any()), both[name]['rcnn'][part],
                                   first[name][part])
            assert all(jax.tree.leaves(changed))
    assert set(both['params']) == {*first['params'], 'rcnn', 'region'}
    assert set(both['params']['region']) == {'score', 'delta'}


@pytest.mark.slow
def test_it_names_the_same_classes_as_the_first_step_and_finds_other_boxes(localizer, trained):
    first, both = (evaluate([str(path)], None, 0, OPTIONS, []).values
                   for path in (localizer, trained))
    for tag in ('eval/top1_error', 'eval/top5_error', 'eval/baseline_error', 'eval/count'):
        assert both[tag] == first[tag], tag
    assert both['eval/mean_iou'] != first['eval/mean_iou']
    reported = next(row for row in read_rows(trained / 'metrics.jsonl') if 'eval/count' in row)
    assert {tag: value for tag, value in reported.items() if tag.startswith('eval/')} == (
        pytest.approx({tag: both[tag] for tag in reported if tag.startswith('eval/')}, abs=1e-3))
    dense = evaluate([str(trained)], None, 0,
                     {**OPTIONS, 'protocol': 'multi_scale', 'scales': ['32', '48']},
                     ['protocol', 'scales'])
    assert dense.values['eval/count'] == 24


@pytest.mark.slow
def test_predict_judges_the_boxes_of_the_classes_that_it_names(localizer, trained, folder):
    names = [str(folder / 'val' / 'class0' / f'{i}.png') for i in range(3)]
    image = np.array(Image.open(names[0]))
    first, network = resnet_jax.load(localizer), resnet_jax.load(trained)
    before, after = first.predict([image]), network.predict([image])
    np.testing.assert_allclose(after.probabilities, before.probabilities, rtol=1e-5)
    judged = (np.abs(after.boxes - before.boxes) > 1e-3).any(-1)[0]
    named = np.argsort(-after.probabilities[0])[:5]
    assert set(np.flatnonzero(judged)) <= set(named) and judged.sum() >= 3
    task, networks = load_all([trained])
    answers = [answer for _, answer in predictions(task.predictor(networks, {'top': 2}), [
        (name, None) for name in names])]
    fields = json.loads(json.dumps(answers[0].fields))['classes']
    assert [one['index'] for one in fields] == named[:2].tolist()
    for one in fields:
        np.testing.assert_allclose(one['box'], after.boxes[0, one['index']], atol=0.02)
        assert one['score'] == pytest.approx(after.scores[0, one['index']], abs=1e-4)
    tested = testing.run(network, create_source(network.config, 'test'),
                         [network.transform.crop], 4, None, skip_unreadable=False)
    label, truth = 0, create_source(network.config, 'test').target(0)['boxes']
    if label in named:
        assert tested.overlap[0] == pytest.approx(
            testing.baseline.best_overlap(after.boxes[0, label], truth), abs=1e-3)


def test_the_cost_counts_the_second_network_for_every_proposal(folder):
    summary = summarize(completed(few_rcnn.config(folder)))
    parts = summary['parts']
    assert parts['regions']['train_runs'] == 1 and parts['regions']['test_runs'] == 6
    assert summary['multiply_adds'] == (parts['proposals']['multiply_adds']
                                        + 6 * parts['regions']['multiply_adds'])
    # The proposal network runs forward only, and the second one forward and backward.
    assert summary['train_flops'] == 2 * parts['proposals']['multiply_adds'] + (
        6 * parts['regions']['multiply_adds'])


@pytest.mark.slow
def test_stopped_and_resumed_it_gives_the_same_bits(config, trained, tmp_path, monkeypatch):
    runs.stop_at(monkeypatch, 3)
    with pytest.raises(loop.Stopped, match='checkpoint saved at step 3'):
        loop.train(config, tmp_path / 'run')
    loop.train(config, tmp_path / 'run')
    jax.tree.map(np.testing.assert_array_equal, stored.read(tmp_path / 'run').variables,
                 stored.read(trained).variables)


@pytest.mark.slow
def test_killed_and_resumed_it_gives_the_same_bits(commands, folder, localizer, tmp_path):
    def arguments(name):
        return ('resnet_jax.main', f'--config={CONFIG}', f'--workdir={tmp_path}/{name}',
                f'--config.data.path={folder}', f'--config.init.checkpoint={localizer}',
                '--config.checkpoint.every_steps=2')

    process = commands.start(*arguments('killed'))
    process.until((tmp_path / 'killed' / 'checkpoints' / '2').exists)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    resumed = commands.run(*arguments('killed'))
    assert resumed.status == 0 and 'resuming from step' in resumed.output
    assert commands.run(*arguments('whole')).status == 0
    jax.tree.map(np.testing.assert_array_equal, stored.read(tmp_path / 'killed').variables,
                 stored.read(tmp_path / 'whole').variables)


def trained_on(devices, folder, localizer):
    """Losses of three steps, the parameters after them, and the sums of an evaluation."""
    config = few_rcnn.config(folder, **{'init.checkpoint': str(localizer), 'mesh.data': devices})
    config.batch_size, config.eval.batch_size, config.model.virtual_batch_size = 16, 16, 2
    program = build(config, sharding.create_mesh(config))
    state, step, sums = program.initial_state(), jax.jit(program.train_step), []
    feed = program.train_data.inputs(0)
    for _ in range(3):
        state, report = step(state, next(feed))
        sums.append({name: float(value) for name, value in report.metrics.items()})
    feed.close()
    batch = program.eval_data.inputs(0)
    _, tested, _ = jax.jit(program.eval_step)(state, next(batch), *program.no_sums())
    batch.close()
    return sums, jax.device_get(state.params), {k: float(v) for k, v in tested.items()}


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes(folder, localizer):
    (one, params, tested), (eight, others, also) = (
        trained_on(devices, folder, localizer) for devices in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert one[0]['box_loss'] > 0 and one[0] != one[1]
    assert tested == pytest.approx(also, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, others)


@pytest.mark.slow
def test_it_corrects_the_boxes_of_the_first_step(tmp_path):
    """Its error is at most half of the first step's; 2.5 for 16.3 % were seen."""
    path = few_boxes.write(tmp_path / 'data', per_class=40)
    errors = []
    for make, rate in ((few_boxes.config, 0.05), (few_rcnn.config, 0.02)):
        config = make(path, num_steps=150, batch_size=32)
        config.model.localizer.anchor_sizes = (12, 18)
        config.schedule.update(name='cosine', learning_rate=rate)
        if errors:
            config.init.checkpoint = str(tmp_path / '0')
        loop.train(config, tmp_path / str(len(errors)))
        values = evaluate([str(tmp_path / str(len(errors)))], None, 0, OPTIONS, []).values
        errors.append(values['eval/localization_error'])
    assert errors[0] < 30 and errors[1] <= errors[0] / 2
