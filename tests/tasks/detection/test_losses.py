"""The losses of Faster R-CNN equal loops over single anchors and regions."""

import math

import jax
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.models import rcnn
from resnet_jax.models.detectors import Settings
from resnet_jax.models.rcnn import Proposals
from resnet_jax.regions import anchors as anchors_lib
from resnet_jax.tasks.detection import losses, task
from tests.regions import reference

CLASSES = 3
S = Settings(rpn_batch=32, rpn_beta=1 / 9, roi_batch=24, roi_positive=0.25, box_beta=0.5)
ANCHORS = np.asarray(anchors_lib.grid(
    anchors_lib.base_anchors((8, 16), (0.5, 1, 2)), 8, 8, 4)).astype(np.float32)
BOXES = np.float32([[3, 2, 12, 10], [14, 12, 30, 27], [20, 1, 28, 9], [0, 16, 9, 32]])
LABELS = [2, 0, 1, 2]


def batch_of(boxes, classes, ignore, present, seed=0):
    """Two images: one with these objects, and one with the first of them alone."""
    G = len(boxes)
    return {
        'boxes': np.stack([boxes] * 2), 'classes': np.stack([np.int32(classes)] * 2),
        'ignore': np.stack([np.array(ignore, bool)] * 2),
        'present': np.stack([np.array(present, bool), np.arange(G) < 1]),
        'size': np.int32([[32, 32], [32, 32]]),
        'draws': np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), 2)))}


def objects(**changed):
    return batch_of(**{'boxes': BOXES, 'classes': LABELS, 'ignore': [False] * 4,
                       'present': [True] * 4, **changed})


def outputs(seed=0, regions=40):
    """Random outputs of a network, and proposals, half of which lie near the objects."""
    rng = np.random.default_rng(seed)
    near = BOXES[rng.integers(4, size=(2, regions))] + rng.uniform(-2, 2, (2, regions, 4))
    corner = rng.uniform(0, 20, (2, regions, 2))
    far = np.concatenate([corner, corner + rng.uniform(2, 12, (2, regions, 2))], -1)
    boxes = np.where(rng.random((2, regions, 1)) < 0.5, near, far).astype(np.float32)
    proposals = Proposals(boxes, np.zeros((2, regions), np.float32),
                          np.arange(regions) < [[40], [30]])
    shapes = ((2, len(ANCHORS)), (2, len(ANCHORS), 4), (2, S.roi_batch, CLASSES + 1),
              (2, S.roi_batch, CLASSES, 4))
    return proposals, tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@jax.jit
def draw(batch, proposals):
    drawn, index = losses.draw_anchors(S, ANCHORS, batch)
    return drawn, index, losses.draw_regions(S, proposals, batch, CLASSES)


@jax.jit
def all_losses(batch, proposals, predicted):
    """The four losses, the gradients of their sum, and what was drawn."""
    def total(predicted):
        scores, deltas, class_scores, class_deltas = predicted
        drawn, index, regions = draw(batch, proposals)
        parts = (*losses.anchor_losses(S, scores, deltas, ANCHORS, drawn, index, batch['boxes']),
                 *losses.region_losses(S, class_scores, class_deltas, regions))
        return sum(part.sum() for part in parts), (parts, (drawn, index, regions))

    (_, (parts, drawn)), grads = jax.value_and_grad(total, has_aux=True)(predicted)
    return parts, grads, drawn


def labelled(candidates, boxes, positive, negative, best_of_each):
    """For every candidate: 1 positive, 0 negative or -1, and the object; by loops."""
    overlap = np.float32([[reference.iou(a, b) for b in boxes] for a in candidates])
    label, index = [], []
    for row in overlap:
        best = row.max()
        ties = best_of_each and any(
            x == overlap[:, j].max() and x > 0 for j, x in enumerate(row))
        label.append(1 if best >= np.float32(positive) or ties
                     else 0 if best < np.float32(negative) else -1)
        index.append(int(row.argmax()))
    return np.array(label), np.array(index)


def encoded(box, anchor, weights=(1, 1, 1, 1)):
    box, anchor = box.astype(np.float64), anchor.astype(np.float64)
    size, anchor_size = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / anchor_size
    return [*(shift * weights[:2]), *(np.log(size / anchor_size) * weights[2:])]


def smooth(prediction, target, beta):
    total = 0.0
    for p, t in zip(prediction, target, strict=True):
        x = abs(float(p) - t)
        total += 0.5 * x * x / beta if x < beta else x - 0.5 * beta
    return total


@pytest.mark.parametrize('seed', range(3))
def test_the_losses_equal_loops_over_anchors_and_regions(seed):
    batch, (proposals, predicted) = objects(seed=seed), outputs(seed)
    parts, _, (drawn, _, regions) = jax.device_get(all_losses(batch, proposals, predicted))
    scores, deltas, class_scores, class_deltas = predicted
    for i, count in enumerate((4, 1)):
        boxes = BOXES[:count]
        label, index = labelled(ANCHORS, boxes, 0.7, 0.3, True)
        assert set(drawn.index[i][drawn.positive[i]]) <= set(np.flatnonzero(label == 1))
        assert set(drawn.index[i][drawn.negative[i]]) <= set(np.flatnonzero(label == 0))
        positives = min((label == 1).sum(), 16)
        assert (drawn.positive[i].sum(), drawn.negative[i].sum()) == (positives, 32 - positives)
        expected = np.zeros(4)
        for a, positive in zip(drawn.index[i], drawn.positive[i], strict=True):
            x = float(scores[i, a])
            expected[0] += math.log1p(math.exp(-x if positive else x))
            if positive:
                expected[1] += smooth(deltas[i, a], encoded(boxes[index[a]], ANCHORS[a]), 1 / 9)

        candidates = np.concatenate([boxes, proposals.boxes[i][proposals.valid[i]]])
        label, index = labelled(candidates, boxes, 0.5, 0.5, False)
        positives = min((label == 1).sum(), 6)
        negatives = min((label == 0).sum(), 24 - positives)
        assert positives >= 1
        assert regions.positive[i].sum() == positives
        assert regions.used[i].sum() == positives + negatives
        for r, region in enumerate(regions.boxes[i]):
            if not regions.used[i, r]:
                continue
            c = int(np.flatnonzero((candidates == region).all(1))[0])
            assert label[c] == regions.positive[i, r]
            true = LABELS[index[c]] if label[c] else CLASSES
            x = class_scores[i, r].astype(np.float64)
            expected[2] += math.log(np.exp(x).sum()) - x[true]
            if label[c]:
                expected[3] += smooth(class_deltas[i, r, true], encoded(
                    boxes[index[c]], region, S.box_weights), 0.5)
        expected /= (32, 32, 24, 24)
        np.testing.assert_allclose([part[i] for part in parts], expected, rtol=1e-5)


def test_smooth_l1_without_a_quadratic_part_is_l1():
    x = np.float32([-2, -0.5, 0, 0.5, 2])
    np.testing.assert_array_equal(losses.smooth_l1(x, 0.0), np.abs(x))
    np.testing.assert_allclose(losses.smooth_l1(x, 1.0), [1.5, 0.125, 0, 0.125, 1.5])


def test_what_lies_in_a_crowd_is_not_background():
    """The right half is a crowd: no negative lies within it, and it is no object itself."""
    crowd = np.float32([[16, 0, 32, 32]])
    batch = batch_of(np.concatenate([BOXES[:1], crowd]), [2, 0], [False, True], [True, True])
    free = batch_of(np.concatenate([BOXES[:1], crowd]), [2, 0], [False, False], [True, False])
    proposals, _ = outputs()

    def within(boxes):
        return np.array([reference.overlap(box, crowd[0])[2] / reference.overlap(box, box)[0]
                         for box in boxes])

    numbers = {}
    for name, objects in (('crowd', batch), ('none', free)):
        drawn, _, regions = jax.device_get(draw(objects, proposals))
        anchors = ANCHORS[drawn.index[0][drawn.negative[0]]]
        background = regions.boxes[0][regions.used[0] & ~regions.positive[0]]
        numbers[name] = [(within(boxes) >= 0.7).sum() for boxes in (anchors, background)]
        assert (regions.classes[0][regions.positive[0]] == 2).all()
        assert len(anchors) == 32 - drawn.positive[0].sum()
    assert numbers['crowd'] == [0, 0]
    assert min(numbers['none']) > 2


def test_places_for_objects_that_are_not_present_change_nothing():
    proposals, predicted = outputs()

    def found(boxes, classes, ignore):
        batch = batch_of(np.concatenate([BOXES, np.float32(boxes)]), [*LABELS, *classes],
                         [False] * 4 + ignore, [True] * 4 + [False] * 3)
        return jax.device_get(all_losses(batch, proposals, predicted))

    empty = found([[0] * 4] * 3, [0] * 3, [False] * 3)
    junk = found([[1, 1, 9, 9], [0, 0, 32, 32], [5, 5, 4, 4]], [1, 2, 0], [False, True, True])
    jax.tree.map(np.testing.assert_array_equal, junk, empty)
    # Nor does their number, to anchors; regions are drawn from the objects too, and others are.
    parts, grads, _ = jax.device_get(all_losses(objects(), proposals, predicted))
    jax.tree.map(np.testing.assert_array_equal, (parts[:2], grads[:2]),
                 (empty[0][:2], empty[1][:2]))


def test_without_objects_only_scores_are_trained():
    proposals, predicted = outputs()
    batch = objects(present=[False] * 4)
    batch['present'][:] = False
    parts, grads, (drawn, _, regions) = jax.device_get(all_losses(batch, proposals, predicted))
    assert drawn.negative.sum(1).tolist() == [32, 32]
    assert regions.used.sum(1).tolist() == [24, 24]
    assert (regions.classes == CLASSES).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((parts, grads)))
    assert [bool(x.any()) for x in (*parts, *grads)] == [True, False, True, False] * 2


def test_the_gradient_of_a_network_is_finite_without_objects_and_ignores_what_is_not_present():
    config = config_lib.default()
    config.model.family, config.model.depth, config.model.num_classes = 'cifar', 8, CLASSES
    config.model.width, config.model.shortcut, config.model.unroll = 4, 'A', False
    for name, value in {'anchor_sizes': (8, 16), 'rpn_features': 8, 'rpn_pre_nms': (64, 64),
                        'rpn_post_nms': (16, 16), 'rpn_batch': 32, 'roi_batch': 16,
                        'roi_size': 4}.items():
        config.model.detector[name] = value
    model = rcnn.create(config)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()

    @jax.jit
    def gradients(batch):
        def total(params):
            value, _, sums = task.loss(model, {**variables, 'params': params}, batch,
                                       jax.random.key(0), config)
            return value, sums
        return jax.grad(total, has_aux=True)(variables['params'])

    def with_objects(**changed):
        return {**objects(**changed), 'image': images, 'mask': np.ones(2, np.float32)}

    none = with_objects()
    none['present'] = np.zeros_like(none['present'])
    grads, sums = jax.device_get(gradients(none))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert sums['count'] == 2
    assert sums['loss'] > 0
    assert sums['proposal_box_loss'] == sums['box_loss'] == 0
    assert not np.any(grads['rpn']['delta']['kernel'])
    assert np.any(grads['stem']['conv']['kernel'])

    two = with_objects(present=[True, True, False, False])
    other = with_objects(present=[True, True, False, False])
    other['boxes'] = np.where(two['present'][..., None], two['boxes'], two['boxes'] / 2)
    other['classes'] = np.where(two['present'], two['classes'], 0)
    jax.tree.map(np.testing.assert_array_equal, gradients(two), gradients(other))
