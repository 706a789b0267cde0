"""The losses, errors and boxes of localization, on numbers that can be checked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import Item
from resnet_jax.data.augment import Augmentation
from resnet_jax.models import localizer
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.localizer import ClassLayer, Localizer, Settings, Siblings
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.tasks.localization import baseline, losses, metrics, testing, transforms
from resnet_jax.tasks.localization.predictor import Prediction
from tests import jitted
from tests.tasks.localization import few_boxes

SETTINGS = Settings((10, 20), (0.7, 1.4))
PLAIN = {'mean': np.zeros(3, np.float32), 'std': np.ones(3, np.float32)}


def network(**fields):
    return Localizer(BasicBlock, (1, 1, 1), stem_kind='cifar', width=4, num_classes=5,
                     settings=fields.pop('settings', SETTINGS), **fields)


def test_the_losses_are_those_of_a_loop_over_the_drawn_anchors():
    rng = np.random.default_rng(0)
    model = network()
    anchors = np.asarray(model.anchors(np.zeros((1, 8, 8, 4))))
    count = len(anchors)
    batch = {'boxes': np.float32([[[3, 4, 17, 20], [0, 0, 0, 0]], [[1, 2, 9, 12], [10, 8, 30, 31]],
                                  [[0, 0, 0, 0]] * 2]),
             'present': np.array([[1, 0], [1, 1], [0, 0]], bool),
             'draws': jax.random.key_data(jax.random.split(jax.random.key(3), 3))}
    scores = rng.normal(size=(3, count)).astype(np.float32)
    deltas = rng.normal(size=(3, count, 4)).astype(np.float32)
    drawn, index = jax.device_get(jax.jit(losses.draw, static_argnums=0)(8, anchors, batch))
    found = jax.jit(losses.anchor_losses, static_argnums=0)(
        8, scores, deltas, anchors, drawn, index, batch['boxes'])
    for n in range(3):
        truth = batch['boxes'][n][batch['present'][n]]
        score = box = 0.0
        for k in range(8):
            a, kind = int(drawn.index[n, k]), (bool(drawn.positive[n, k]),
                                               bool(drawn.negative[n, k]))
            if not any(kind):
                continue
            overlaps = [baseline.best_overlap(anchors[a], one[None]) for one in truth]
            score += math.log1p(math.exp(-scores[n, a] if kind[0] else scores[n, a]))
            if kind[0]:
                width, height = anchors[a, 2:] - anchors[a, :2]
                x1, y1, x2, y2 = truth[int(np.argmax(overlaps))]
                centre = (anchors[a, :2] + anchors[a, 2:]) / 2
                target = [((x1 + x2) / 2 - centre[0]) / width, ((y1 + y2) / 2 - centre[1]) / height,
                          math.log((x2 - x1) / width), math.log((y2 - y1) / height)]
                for d, t in zip(deltas[n, a], target, strict=True):
                    r = abs(d - t)
                    box += 4.5 * r * r if r < 1 / 9 else r - 1 / 18
            else:
                assert max(overlaps) < 0.3
        np.testing.assert_allclose([found[0][n], found[1][n]], [score / 8, box / 8], rtol=1e-5)
    # Half of the eight are positives where there are enough, and an image without a box has none.
    assert drawn.positive.sum(1).tolist() == [2, 4, 0]
    assert drawn.negative.sum(1).tolist() == [6, 4, 0]


def test_an_answer_is_right_if_a_named_class_is_and_its_box_overlaps_by_more_than_half():
    label = jnp.array([0, 1, 2, 3])
    classes = jnp.array([[0, 5, 6, 7, 8], [5, 1, 6, 7, 8], [5, 6, 7, 8, 9], [3, 5, 6, 7, 8]])
    overlap = jnp.array([0.75, 0.5, 1.0, 0.25])
    sums = metrics.sums(label, classes, overlap, jnp.ones(4))
    assert metrics.report(sums) == {
        'localization_error': 50, 'top5_localization_error': 75, 'mean_iou': 62.5,
        'top1_error': 50, 'top5_error': 25, 'count': 4}
    # Images that pad the batch do not count, and what is not a number is wrong.
    sums = metrics.sums(label, classes, overlap.at[0].set(jnp.nan), jnp.array([1, 0, 0, 1]))
    assert metrics.report(sums)['localization_error'] == 100


def test_the_overlap_is_with_any_box_of_the_image():
    truth = jnp.array([[[0, 0, 10, 10], [20, 20, 30, 30], [4, 0, 14, 10]]], jnp.float32)
    boxes = jnp.array([[[20, 20, 30, 25], [4, 0, 14, 10]]], jnp.float32)
    present = jnp.array([[True, True, False]])
    # The third box is padding.
    np.testing.assert_allclose(metrics.best_iou(boxes, truth, present), [[0.5, 60 / 140]])


def test_layers_of_chosen_classes_are_those_of_all_classes():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float32)
    layer = ClassLayer(5, 7)
    variables = layer.init(jax.random.key(0), x, None)
    variables['params']['bias'] = jax.random.normal(jax.random.key(1), (5, 7))
    everything = layer.apply(variables, x, None)
    assert everything.shape == (2, 5, 3, 4, 7)
    classes = np.array([[4, 0], [2, 2]])
    np.testing.assert_allclose(
        layer.apply(variables, x, classes),
        np.stack([everything[n, classes[n]] for n in range(2)]), atol=1e-6)


def test_shared_boxes_are_the_same_for_all_classes_and_others_are_not():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float32)
    for per_class, kernels in ((True, 5), (False, 1)):
        layer = Siblings(5, 3, per_class)
        variables = layer.init(jax.random.key(0), x, None)
        assert variables['params']['delta']['kernel'].shape == (kernels, 6, 12)
        for classes in (None, np.array([[1, 3], [0, 4]])):
            scores, deltas = layer.apply(variables, x, classes)
            assert deltas.shape == (*scores.shape, 4) and scores.shape[2] == 36
            same = np.array_equal(deltas[:, 0], deltas[:, 1])
            assert same is not per_class


def test_anchors_cover_an_image_and_its_mirror_image_alike():
    anchors = np.asarray(network().anchors(np.zeros((1, 8, 8, 4))))
    mirrored = np.stack([32 - anchors[:, 2], anchors[:, 1], 32 - anchors[:, 0], anchors[:, 3]], 1)
    assert {tuple(x.round(3)) for x in anchors} == {tuple(x.round(3)) for x in mirrored}


def test_the_best_box_is_that_of_the_best_anchor_and_lies_in_the_image():
    model = network()
    images = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jitted.init(model, jax.random.key(0), images, train=False)
    outputs = jax.device_get(jitted.apply(model, variables, images, train=False))
    features = jitted.apply(model, variables, images, train=False, method='last_map')
    frames = np.float32([[0, 0, 32, 32], [4, 6, 20, 30]])
    found = jax.device_get(jitted.apply(
        model, variables, features, None, frames, method='locate'))
    anchors = np.asarray(model.anchors(features))
    for n in range(2):
        for k in range(5):
            best = int(np.argmax(outputs['scores'][n, k]))
            box = boxes_lib.decode(outputs['deltas'][n, k, best], anchors[best])
            np.testing.assert_allclose(
                found.boxes[n, k], np.clip(box, frames[n, [0, 1, 0, 1]], frames[n, [2, 3, 2, 3]]),
                atol=1e-4)
            assert found.scores[n, k] == outputs['scores'][n, k, best]


@pytest.mark.parametrize('fields', [dict(train_crop='pad', crop_padding=3),
                                    dict(train_crop='random_resized', crop_scale=(0.3, 0.9))])
def test_boxes_follow_crops_and_mirrors(fields):
    """A white box on black stays where the pixels are white."""
    config = few_boxes.config('/nothing')
    config.data.update(flip=True, image_size=48, **fields)
    image = np.zeros((60, 80, 3), np.uint8)
    image[12:47, 20:56] = 255
    item = Item(image, {'label': 1, 'boxes': np.float32([[20, 12, 56, 47]])}, 'an image')
    made = transforms.transforms(config)
    examples = [made['train_transform'](item, np.random.default_rng(i)) for i in range(12)]
    examples = jax.tree.map(lambda *x: np.stack(x), *examples)
    batch = jax.device_get(jax.jit(lambda *args: made['augment'](*args))(
        examples, jax.random.key(0), PLAIN))
    assert batch['present'].sum(0)[1] == 0 and batch['present'].sum() >= 9
    for pixels, box, present in zip(batch['image'], batch['boxes'][:, 0], batch['present'][:, 0],
                                    strict=True):
        if present:
            rows, columns = (np.flatnonzero(np.asarray(pixels[..., 0] > 0.5).any(axis))
                             for axis in (1, 0))
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, seen, atol=1.5)


def test_a_box_that_is_hardly_seen_is_not_trained_but_counts_in_an_evaluation():
    examples = {'image': jnp.zeros((2, 8, 8, 3), jnp.uint8), 'label': jnp.array([0, 1]),
                'boxes': jnp.float32([[[-7, 0, 2, 8]], [[-5, 0, 5, 8]]]),
                'present': jnp.ones((2, 1), bool),
                'points': jnp.float32([[[-7, 0], [9, 8]], [[9, 8], [-7, 0]]])}
    augment = transforms.Augment(Augmentation(0, False, 0.0, 0.0, 0.0))
    batch = augment(examples, jax.random.key(0), PLAIN)
    assert batch['present'].tolist() == [[False], [True]]
    assert batch['boxes'][1, 0].tolist() == [0, 0, 5, 8]
    evaluated = augment(examples, None, PLAIN)
    assert evaluated['present'].all() and evaluated['boxes'][0, 0, 0] == -7
    assert evaluated['frames'].tolist() == [[-7, 0, 9, 8]] * 2


def test_scales_are_merged_by_the_best_score_of_each_class():
    one, two = (Prediction(np.float32([[p, 1 - p]]), np.float32([[[s] * 4, [s + 1] * 4]]),
                           np.float32([scores])) for p, s, scores in (
                               (0.25, 10, [0.9, 0.1]), (0.75, 20, [0.3, 0.2])))
    found = testing.merged([one, two])
    assert found.probabilities.tolist() == [[0.5, 0.5]]
    assert found.boxes[0, :, 0].tolist() == [10, 21]
    np.testing.assert_allclose(found.scores, [[0.9, 0.2]])


def test_a_dense_view_shows_the_whole_image():
    crop = testing.dense(Item(np.zeros((50, 81, 3), np.uint8), {}, ''), 64)
    assert crop.size == (64, 96)  # 103.68, to the nearest multiple of 32
    assert crop.boxes(np.float32([0, 0, 81, 50])).tolist() == [0, 0, 96, 64]


def test_the_centre_box_has_the_mean_size_of_its_class(tmp_path):
    class Train:
        num_classes, sizes = 2, np.array([[10, 20], [10, 10], [40, 20]])
        objects = type('O', (), dict(
            counts=np.array([2, 1, 0]), classes=np.array([0, 0, 1]),
            boxes=np.float32([[0, 0, 10, 5], [0, 0, 20, 10], [2, 2, 4, 6]])))

    sizes = baseline.mean_sizes(Train)
    np.testing.assert_allclose(sizes, [[0.75, 0.75], [0.2, 0.4]])
    np.testing.assert_allclose(baseline.centred(sizes[1], (100, 50)), [20, 30, 30, 70])


@pytest.mark.parametrize('field', ['anchor_sizes', 'anchor_ratios'])
def test_a_field_out_of_its_range_is_one_sentence(field):
    config = few_boxes.config('/nothing')
    config.model.num_classes = 5
    config.model.localizer[field] = (1, -2)
    with pytest.raises(ConfigError, match=f'model.localizer.{field} must be positive numbers'):
        localizer.create(config)
    with pytest.raises(ConfigError, match='a localizer needs a residual network'):
        config.model.update(family='vgg', depth=16)
        localizer.create(config)
