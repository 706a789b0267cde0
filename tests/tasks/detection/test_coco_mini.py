"""Real photographs through COCO's reader: their AP, and some steps of training."""

import contextlib
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest

from configs import scenes_r20
from resnet_jax.data import create_source
from resnet_jax.tasks.detection import results
from resnet_jax.tasks.detection.coco_ap import NAMES, coco_ap
from resnet_jax.tasks.detection.truth import Found, Objects
from resnet_jax.training import loop
from resnet_jax.training.writers import read_rows

VAL = 'annotations/instances_val2017.json'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = os.environ.get('RESNET_JAX_TEST_DATA')
    if not root:
        pytest.skip('RESNET_JAX_TEST_DATA is not set to the folder of the real data')
    folder = tmp_path_factory.mktemp('coco')
    with tarfile.open(pathlib.Path(root, 'coco_mini.tar.xz')) as archive:
        archive.extractall(folder, filter='data')
    return folder / 'coco_mini'


def config_of(folder):
    config = scenes_r20.get_config()
    config.data.update(source='coco', path=str(folder), image_size=(64, 96), channels=3,
                       canvases=((96, 64),), max_objects=64, flip=True, normalization='imagenet')
    config.model.num_classes = 80
    config.init.checkpoint = ''
    return config


@pytest.fixture(scope='module')
def truth(folder):
    source = create_source(config_of(folder), 'test')
    return source, [Objects(*(source.target(i)[name] for name in Objects._fields[:4]))
                    for i in range(len(source))]


def as_found(objects):
    """Detections where the objects are, but for crowds."""
    counts = ~objects.ignore
    return Found(objects.boxes[counts], objects.classes[counts],
                 np.ones(counts.sum(), np.float32))


def test_perfect_detections_have_an_ap_of_100(truth):
    _, objects = truth
    assert sum(x.ignore.sum() for x in objects) > 10  # crowds are neither right nor wrong
    numbers = coco_ap(objects, [as_found(x) for x in objects], 80)
    assert [numbers[name] for name in ('ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
                                       'ar100')] == pytest.approx([100] * 7, abs=1e-9)


def test_ap_is_that_of_pycocotools_on_the_published_files(folder, truth, tmp_path):
    coco = pytest.importorskip('pycocotools.coco', reason='compares with pycocotools')
    cocoeval = pytest.importorskip('pycocotools.cocoeval', reason='compares with pycocotools')
    source, objects = truth
    rng, found = np.random.default_rng(0), []
    for x in objects:
        n = len(x.classes)
        boxes = x.boxes + rng.normal(0, 0.08, (n, 4)) * np.tile(x.boxes[:, 2:] - x.boxes[:, :2], 2)
        boxes = np.concatenate([boxes, rng.uniform(0, 150, (3, 4))])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        classes = np.concatenate([x.classes, rng.integers(0, 80, 3)]).astype(np.int32)
        wrong = rng.uniform(size=n + 3) < 0.1
        classes[wrong] = rng.integers(0, 80, wrong.sum())
        scores = np.sort(rng.integers(1, 40, n + 3) / 40)[::-1]  # with ties
        found.append(Found(np.round(boxes, 2).astype(np.float32), classes,
                           scores.astype(np.float32)))
    file = tmp_path / 'found.json'
    results.write_coco(file, [source.target(i)['id'] for i in range(len(source))], found,
                       source.category_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO(folder / VAL)
        evaluation = cocoeval.COCOeval(reference, reference.loadRes(str(file)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = coco_ap(objects, found, 80)
    assert 20 < numbers['ap'] < 80
    np.testing.assert_allclose([numbers[name] / 100 for name in NAMES], evaluation.stats,
                               rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_detector_is_trained_for_some_steps_and_evaluated(folder, tmp_path):
    config = config_of(folder)
    config.model.depth, config.model.width = 8, 8
    config.num_steps, config.batch_size, config.eval.batch_size = 4, 8, 16
    config.mesh.data = 1
    config.schedule.update(name='constant', warmup='none')
    values = loop.train(config, tmp_path / 'run')
    assert values['eval/count'] == 302 and 0 <= values['eval/ap'] < 50
    rows = read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert all(np.isfinite(row['train/loss']) for row in rows if 'train/loss' in row)
