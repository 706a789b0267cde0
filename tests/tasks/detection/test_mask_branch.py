"""Masks of detections: their loss, their place in images, their average precision, and commands."""

import contextlib
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from configs import coco_r50_c4, coco_r50_fpn, nuclei_r20
from resnet_jax.data import masks
from resnet_jax.distributed import sharding
from resnet_jax.models import rcnn
from resnet_jax.models.detectors import Settings
from resnet_jax.models.masks import MaskHead, of_classes
from resnet_jax.tasks.detection import inference, losses, paste, task
from resnet_jax.tasks.detection.coco_ap import NAMES, coco_ap
from resnet_jax.tasks.detection.losses import Regions
from resnet_jax.training import costs, loop
from resnet_jax.training.program import build
from resnet_jax.training.writers import read_rows
from tests.conftest import ROOT
from tests.tasks.detection import few_scenes, tiny_mask_detector
from tests.tasks.detection.random_sets import random_set

CONFIG = ROOT / 'tests' / 'tasks' / 'detection' / 'tiny_mask_detector.py'


def test_the_loss_is_that_of_a_loop_over_regions_and_cells():
    rng = np.random.default_rng(0)
    settings = Settings(masks=True, roi_batch=12, roi_positive=0.25)
    classes = np.int32([[2, 0, 3], [1, 3, 3]])  # 3 is the background
    positive = np.arange(12) < [[2], [1]]
    scores = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    targets = rng.random((2, 3, 4, 4)).astype(np.float32)
    regions = Regions(None, None, None, positive, None, targets)
    found = losses.mask_loss(settings, of_classes(scores, classes), regions)
    expected = np.zeros(2)
    for n, r in ((0, 0), (0, 1), (1, 0)):
        p = 1 / (1 + np.exp(-scores[n, r, ..., classes[n, r]].astype(np.float64)))
        t = targets[n, r].astype(np.float64)
        expected[n] -= (t * np.log(p) + (1 - t) * np.log(1 - p)).mean() / 3
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_targets_of_positives_are_what_their_objects_cover():
    boxes = np.float32([[4, 4, 12, 12], [16, 8, 28, 28]])
    crops = np.zeros((2, 112, 112), np.uint8)
    crops[0, :, :56], crops[1, 56:] = 1, 1  # the left half; the lower half
    batch = {'boxes': boxes[None], 'classes': np.int32([[0, 1]]), 'masks': crops[None],
             'ignore': np.zeros((1, 2), bool), 'present': np.ones((1, 2), bool),
             'size': np.int32([[32, 32]]),
             'draws': np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 1)))}
    proposals = rcnn.Proposals(np.float32([[[6, 4, 14, 12], [0, 20, 8, 30]]]),
                               np.zeros((1, 2), np.float32), np.ones((1, 2), bool))
    settings = Settings(masks=True, roi_batch=8, roi_positive=0.5)
    drawn = jax.jit(losses.draw_regions, static_argnums=(0, 3, 4))(
        settings, proposals, batch, 2, 4)
    assert drawn.masks.shape == (1, 4, 4, 4) and drawn.positive[0].sum() == 3
    rows = {tuple(box): mask.round(4).tolist() for box, mask in zip(
        np.asarray(drawn.boxes[0, :3]), np.asarray(drawn.masks[0, :3]), strict=True)}
    assert rows == {
        (4, 4, 12, 12): [[1, 1, 0, 0]] * 4, (16, 8, 28, 28): [[0] * 4] * 2 + [[1] * 4] * 2,
        (6, 4, 14, 12): [[1, 0, 0, 0]] * 4}  # a cell is 2 pixels, and the object ends at 8


def test_doubling_is_the_transposed_convolution_of_pytorch():
    torch = pytest.importorskip('torch', reason='compares with PyTorch')
    head = MaskHead(5, 6, 1, np.float32)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 7)).astype(np.float32)
    variables = head.init(jax.random.key(0), x)
    params = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(
        size=a.shape).astype(np.float32), variables['params'])
    conv, deconv, score = (
        layer(*sizes) for layer, sizes in (
            (functools.partial(torch.nn.Conv2d, padding=1), (7, 6, 3)),
            (functools.partial(torch.nn.ConvTranspose2d, stride=2), (6, 6, 2)),
            (torch.nn.Conv2d, (6, 5, 1))))
    for layer, name, axes in ((conv, 'conv1', (3, 2, 0, 1)), (deconv, 'deconv', (2, 3, 0, 1)),
                              (score, 'score', (3, 2, 0, 1))):
        layer.weight.data = torch.tensor(params[name]['kernel'].transpose(axes).copy())
        layer.bias.data = torch.tensor(params[name]['bias'])
    expected = score(deconv(conv(torch.tensor(x.transpose(0, 3, 1, 2))).relu()).relu())
    np.testing.assert_allclose(head.apply({'params': params}, x),
                               expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-3)


@pytest.mark.parametrize('seed', range(4))
def test_pasting_equals_sampling_a_grid_of_the_whole_image(seed):
    torch = pytest.importorskip('torch', reason='compares with PyTorch')
    rng = np.random.default_rng(seed)
    height, width, size = 50, 70, 14
    cells = rng.random((6, size, size)).astype(np.float32)
    corner = rng.uniform(-10, 50, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 50, (6, 2))], 1).astype(np.float32)
    for mask, box, rle in zip(cells, boxes, paste.paste_all(cells, boxes, (height, width)),
                              strict=True):
        x, y = (2 * (np.arange(side) + 0.5 - box[i]) / (box[i + 2] - box[i]) - 1
                for i, side in ((0, width), (1, height)))
        grid = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
        sampled = torch.nn.functional.grid_sample(
            torch.tensor(mask)[None, None], torch.tensor(grid)[None], align_corners=False)
        sampled = sampled[0, 0].numpy()
        clear = np.abs(sampled - 0.5) > 1e-4  # but for rounding
        np.testing.assert_array_equal(masks.decode(rle)[clear], (sampled > 0.5)[clear])
        assert clear.mean() > 0.99


def with_masks(images, side, seed):
    """Ellipses in the boxes, with a few wrong pixels."""
    rng = np.random.default_rng(seed)

    def mask_of(box):
        y, x = np.mgrid[:side, :side] + 0.5
        half, centre = (box[2:] - box[:2]) / 2, (box[2:] + box[:2]) / 2
        inside = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1
        return masks.of_instances((inside ^ (rng.random(inside.shape) < 0.002)).astype(int), [1])[0]

    return [image._replace(masks=[mask_of(box) for box in image.boxes]) for image in images]


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_of_masks_equals_that_of_pycocotools(seed):
    coco = pytest.importorskip('pycocotools.coco', reason='compares with pycocotools')
    cocoeval = pytest.importorskip('pycocotools.cocoeval', reason='compares with pycocotools')
    truth, found = (with_masks(images, 330, seed) for images in random_set(seed))
    numbers = coco_ap(truth, found, 4, of_masks=True)
    reference = coco.COCO()
    reference.dataset = {
        'info': {}, 'categories': [{'id': label} for label in range(4)],
        'images': [{'id': i + 1, 'height': 330, 'width': 330} for i in range(len(truth))],
        'annotations': [{'id': n, **row} for n, row in enumerate((
            {'image_id': i + 1, 'category_id': int(label), 'iscrowd': int(ignore),
             'area': float(area), 'segmentation': mask, 'bbox': [0, 0, 1, 1]}
            for i, objects in enumerate(truth)
            for _, label, ignore, area, mask in zip(*objects, strict=True)), 1)]}
    detections = [{'image_id': i + 1, 'category_id': int(label), 'score': float(score),
                   'segmentation': mask} for i, image in enumerate(found)
                  for _, label, score, mask in zip(*image, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        evaluation = cocoeval.COCOeval(reference, reference.loadRes(detections), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.1 < evaluation.stats[0] < 0.9 and (evaluation.stats >= 0).all()
    np.testing.assert_allclose([numbers[name] / 100 for name in NAMES], evaluation.stats,
                               rtol=0, atol=1e-12)
    assert numbers['ap'] != coco_ap(truth, found, 4)['ap']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The workdir of a tiny mask detector."""
    workdir = tmp_path_factory.mktemp('masks') / 'run'
    loop.train(tiny_mask_detector.get_config(), workdir)
    return workdir


@pytest.mark.slow
def test_it_is_trained_evaluated_and_its_masks_predicted(finished, commands, tmp_path):
    rows = read_rows(finished / 'metrics.jsonl')
    assert all(row['train/mask_loss'] > 0 for row in rows if 'train/loss' in row)
    measured = next(row for row in rows if 'eval/ap' in row)
    assert {'eval/mask_ap', 'eval/mask_ap50', 'eval/mask_ar100'} <= set(measured)

    detections = tmp_path / 'found.json'
    result = commands.run('resnet_jax.evaluate', f'--workdir={finished}', '--json',
                          f'--detections={detections}')
    assert result.status == 0, result.errors
    values = json.loads(result.output)
    for name in ('ap', 'mask_ap', 'mask_ap50'):
        assert values[f'eval/{name}'] == pytest.approx(measured[f'eval/{name}'], abs=1e-3)
    assert len(values['eval/mask_class_ap']) == 10
    written = json.loads(detections.read_text())
    assert masks.decode(written[0]['segmentation']).shape == (32, 32)

    image = few_scenes.eight().images[0]
    Image.fromarray(image[..., 0]).resize((48, 64)).save(tmp_path / '0.png')
    result = commands.run('resnet_jax.predict', f'--checkpoint={finished}', '--json',
                          '--min_score=0.05', f'--draw={tmp_path}', tmp_path / '0.png')
    found = json.loads(result.output)['detections']
    assert found and all(masks.decode(x['mask']).shape == (64, 48) for x in found)
    assert (tmp_path / '0_2.png').is_file()
    prediction = resnet_jax.load(finished).predict(image)
    assert prediction.mask.shape == (len(prediction.scores), 32, 32)
    assert prediction.mask.dtype == bool and prediction.mask.any()
    for box, mask in zip(prediction.xyxy, prediction.mask, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):  # never beyond the box
            assert columns.min() + 0.5 >= box[0] and columns.max() + 0.5 <= box[2]
            assert rows.min() + 0.5 >= box[1] and rows.max() + 0.5 <= box[3]


@pytest.mark.slow
def test_several_scales_and_refined_boxes_have_masks_as_well(finished, commands):
    result = commands.run('resnet_jax.evaluate', f'--workdir={finished}', '--json', '--refine',
                          '--protocol=multi_scale', '--scales=24,32,40')
    assert result.status == 0, result.errors
    assert json.loads(result.output)['eval/mask_ap'] >= 0


def test_the_cost_of_masks_is_that_of_detectron2s_layers():
    config = coco_r50_c4.get_config()
    config.model.detector.masks = True
    found = costs.summarize(config)
    assert found['parameters'] == 35_962_732
    # A deconvolution of 7 x 7 x 2048 to 14 x 14 x 256, and 80 masks; the last stage once more.
    head = 49 * 2048 * 4 * 256 + 196 * 256 * 80
    assert found['parts']['mask'] == {
        'multiply_adds': head, 'train_runs': 128, 'test_runs': 100}
    assert found['parts']['detection']['test_runs'] == 100


def test_with_a_feature_pyramid_it_is_the_network_of_torchvision():
    config = coco_r50_fpn.get_config()
    config.model.num_classes = 90
    config.model.detector.update(masks=True, background_box=True)
    model, variables, _ = costs.shapes(config)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert total == 44_401_393 + 53_120  # and the scales and offsets of batch normalisation
    assert (model.settings.mask_layers, model.mask_size) == (4, 28)


@pytest.mark.slow
def test_a_feature_pyramid_learns_masks_and_predicts_them():
    config = tiny_mask_detector.get_config()
    config.model.detector.update(
        kind='fpn', anchor_sizes=(6, 10, 16, 24), neck_features=8, box_features=16, roi_size=4)
    program = build(config, sharding.create_mesh(config))
    state = program.initial_state()
    batch = program.train_data.batch(next(program.train_data.inputs(0)), state.step,
                                     state.normalization)

    def loss(params):
        total, _, sums = task.loss(program.model, {**state.variables, 'params': params}, batch,
                                   None, program.config)
        return total, sums

    gradient, sums = jax.grad(loss, has_aux=True)(state.params)
    assert 0.1 < float(sums['mask_loss'] / sums['count']) < 0.7  # log 2 for every positive
    assert all(float(abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient['mask']))
    found = inference.detect(program.model, state.variables, batch['image'], batch['size'])
    assert found.masks.shape[2:] == (28, 28) and found.masks.dtype == jnp.float16


def test_the_config_of_nuclei_needs_no_data_to_be_compiled():
    config = nuclei_r20.get_config()
    config.mesh.data = 1
    program = build(config, sharding.create_mesh(config), blank=True)
    train, test = (data.input_shapes for data in (program.train_data, program.eval_data))
    assert train['image'].shape[1:] == (160, 160, 1) and train['masks'].shape[1:] == (100, 112, 112)
    assert test['image'].shape[1:] == (320, 432, 1) and test['boxes'].shape[1] == 375
