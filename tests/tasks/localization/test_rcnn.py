"""The R-CNN of localization, piece by piece: crops, samples, losses, and the box that is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import localizer, localizer_rcnn
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.localizer import Found, Localizer, Settings
from resnet_jax.models.localizer_rcnn import LocalizerRCNN
from resnet_jax.tasks.localization import rcnn
from tests import jitted
from tests.tasks.localization import few_rcnn

SETTINGS = Settings((10, 20), (0.7, 1.4), proposals=7, crop_size=8)
FRAMES = np.float32([[0, 0, 32, 32], [4, 6, 20, 30]])
warp = jax.jit(localizer_rcnn.warp, static_argnums=2)


def network(kind=LocalizerRCNN, **fields):
    return kind(BasicBlock, (1, 1, 1), stem_kind='cifar', width=4, num_classes=5,
                settings=fields.pop('settings', SETTINGS), **fields)


@pytest.fixture(scope='module')
def given():
    """A network, its variables with lively scores, two images and their features."""
    images = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    model = network()
    variables = jitted.init(model, jax.random.key(0), images, train=False)
    for name in ('localizer', 'region'):
        variables['params'][name] = jax.tree.map(lambda x: 20 * x, variables['params'][name])
    features = jitted.apply(model, variables, images, train=False, method='last_map')
    return model, variables, images, features


def bilinear(image, box, size):
    """Warps a box by loops: each pixel is the mean of 2 x 2 samples; 0 beyond the image."""
    (height, width), out = image.shape[:2], np.zeros((size, size, image.shape[2]))
    for row, column in np.ndindex(size, size):
        for a, b in np.ndindex(2, 2):
            y = box[1] + (row + (a + 0.5) / 2) * (box[3] - box[1]) / size - 0.5
            x = box[0] + (column + (b + 0.5) / 2) * (box[2] - box[0]) / size - 0.5
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            top, left = int(min(y, height - 2)), int(min(x, width - 2))
            low, right = y - top, x - left
            out[row, column] += (
                (1 - low) * ((1 - right) * image[top, left] + right * image[top, left + 1])
                + low * ((1 - right) * image[top + 1, left] + right * image[top + 1, left + 1])) / 4
    return out


def boxes_on(rng, count, side=32.0):
    start = rng.uniform(-6, side - 10, (count, 2))
    return np.concatenate([start, start + rng.uniform(2, 30, (count, 2))], 1).astype(np.float32)


def test_crops_are_bilinear_and_zero_beyond_the_image():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 24, 3)).astype(np.float32)
    boxes = np.stack([boxes_on(rng, 6), boxes_on(rng, 6)])
    crops = warp(images, boxes, 9)
    assert crops.shape == (2, 6, 9, 9, 3)
    for n, r in np.ndindex(2, 6):
        np.testing.assert_allclose(crops[n, r], bilinear(images[n], boxes[n, r], 9), atol=1e-5)


def test_crops_are_those_of_torchvision():
    torch = pytest.importorskip('torch')
    ops = pytest.importorskip('torchvision.ops')
    rng = np.random.default_rng(1)
    images = rng.normal(size=(1, 48, 40, 3)).astype(np.float32)
    boxes = boxes_on(rng, 20, 40.0)
    expected = ops.roi_align(torch.tensor(images.transpose(0, 3, 1, 2)), [torch.tensor(boxes)],
                             16, 1.0, 2, aligned=True).numpy().transpose(0, 2, 3, 1)
    crops = warp(images, boxes[None], 16)[0]
    np.testing.assert_allclose(crops, expected, atol=1e-5)


def test_the_reduced_image_has_the_means_of_squares():
    images = np.arange(5 * 7, dtype=np.float32).reshape(1, 5, 7, 1)
    small = localizer_rcnn.reduced(images, 2)
    assert small.shape == (1, 2, 3, 1)
    assert small[0, 1, 2, 0] == images[0, 2:4, 4:6, 0].mean()


def test_proposals_are_the_best_anchors_of_the_first_step(given):
    model, variables, images, features = given
    first = network(Localizer)
    kept = {name: {part: tree for part, tree in parts.items() if part not in ('rcnn', 'region')}
            for name, parts in variables.items()}
    classes = np.array([[3, 1], [0, 3]])
    outputs = jitted.apply(first, kept, images, train=False)
    boxes = jitted.apply(model, variables, features, classes, FRAMES, method='propose')
    assert boxes.shape == (2, 2, 7, 4)
    best = jitted.apply(first, kept, features, classes, FRAMES, method='locate')
    np.testing.assert_allclose(boxes[:, :, 0], best.boxes, atol=1e-4)
    for n, t in np.ndindex(2, 2):
        scores = np.asarray(outputs['scores'][n, classes[n, t]])
        order = np.argsort(-scores, kind='stable')[:7]
        expected = localizer.within(localizer.boxes_lib.decode(
            outputs['deltas'][n, classes[n, t]][order], first.anchors(features)[order])[None],
            FRAMES[n:n + 1])[0]
        np.testing.assert_allclose(boxes[n, t], expected, atol=1e-4)


def test_proposals_of_a_reduced_image_are_in_pixels_of_the_input(given):
    model, variables, images, _ = given
    doubled = images.repeat(2, 1).repeat(2, 2)
    half = network(settings=Settings((10, 20), (0.7, 1.4), proposals=7, crop_size=8, reduction=2))
    classes = np.array([[3], [0]])

    def propose(model, images, frames):
        features = jitted.apply(model, variables, images, train=False, method='last_map')
        return jitted.apply(model, variables, features, classes, frames, method='propose')

    np.testing.assert_allclose(propose(half, doubled, 2 * FRAMES),
                               2 * propose(model, images, FRAMES), atol=1e-3)


def test_the_second_network_is_asked_for_the_class_of_each_crop(given):
    model, variables, images, _ = given
    outputs = jitted.apply(model, variables, images, train=False)
    whole = np.tile(np.float32([0, 0, 32, 32]), (2, 1, 1))
    crops = warp(images, whole, 8)[:, 0]
    scores, deltas = jitted.apply(model, variables, crops, np.array([4, 2]), train=False,
                                  method='judge')
    np.testing.assert_allclose(scores, outputs['region_scores'][[0, 1], [4, 2]], rtol=1e-5)
    np.testing.assert_allclose(deltas, outputs['region_deltas'][[0, 1], [4, 2]], rtol=1e-5)
    assert np.abs(outputs['region_deltas'][0, 4] - outputs['region_deltas'][0, 2]).max() > 1e-4


def test_the_best_judged_proposal_is_corrected(given):
    """The same by a loop over all proposals, each warped and judged alone."""
    model, variables, images, features = given
    classes = np.array([[3, 1], [0, 3]])
    found = jax.jit(rcnn.judged, static_argnums=0)(
        model, variables, images, features, classes, FRAMES)
    proposals = np.asarray(jitted.apply(
        model, variables, features, classes, FRAMES, method='propose'))
    chosen = []
    for n, t in np.ndindex(2, 2):
        answers = []
        for region in proposals[n, t]:
            crop = bilinear(images[n], region, 8).astype(np.float32)
            score, delta = jitted.apply(model, variables, crop[None], classes[n, t:t + 1],
                                        train=False, method='judge')
            dx, dy, dw, dh = np.asarray(delta[0], np.float64) / [10, 10, 5, 5]
            (x1, y1, x2, y2), limit = region, np.log(1000 / 16)
            w, h = (x2 - x1) * np.exp(min(dw, limit)), (y2 - y1) * np.exp(min(dh, limit))
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2],
                          FRAMES[n, [0, 1, 0, 1]], FRAMES[n, [2, 3, 2, 3]])
            answers.append((float(score[0]), box))
        chosen.append(int(np.argmax([score for score, _ in answers])))
        assert found.scores[n, t] == pytest.approx(answers[chosen[-1]][0], rel=1e-4)
        np.testing.assert_allclose(found.boxes[n, t], answers[chosen[-1]][1], atol=1e-3)
    assert any(chosen)  # not always the proposal that was the best before


def test_boxes_of_other_classes_stay_those_of_the_first_step():
    rng = np.random.default_rng(3)
    found, better = (Found(np.float32(rng.normal(size=(2, count, 4))),
                           np.float32(rng.normal(size=(2, count)))) for count in (5, 2))
    classes = np.array([[4, 1], [0, 2]])
    mixed = rcnn.replaced(found, classes, better)
    expected = Found(found.boxes.copy(), found.scores.copy())
    for n, t in np.ndindex(2, 2):
        expected.boxes[n, classes[n, t]] = better.boxes[n, t]
        expected.scores[n, classes[n, t]] = better.scores[n, t]
    np.testing.assert_allclose(mixed.boxes, expected.boxes, rtol=1e-6)
    np.testing.assert_allclose(mixed.scores, expected.scores, rtol=1e-6)


def overlap(a, b):
    side = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    inter = side.prod()
    return inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter)


def batch_of(boxes, present, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(boxes))
    return {'boxes': jnp.float32(boxes), 'present': jnp.array(present),
            'draws': jax.random.key_data(keys)}


def test_samples_and_losses_are_those_of_a_loop():
    rng = np.random.default_rng(4)
    boxes = rng.uniform(0, 20, (64, 2, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(6, 20, (64, 2, 2))
    proposals = (boxes[:, rng.integers(0, 2, 9)] + rng.normal(0, 3, (64, 9, 4))).astype(np.float32)
    present = np.stack([np.arange(64) % 8 > 0, np.arange(64) % 3 == 1], 1)
    drawn = jax.device_get(jax.jit(rcnn.draw)(proposals, batch_of(boxes, present)))
    scores, deltas = np.float32(rng.normal(size=64)), np.float32(rng.normal(size=(64, 4)))
    score_loss, box_loss = jax.device_get(jax.jit(rcnn.region_losses)(scores, deltas, drawn))
    kinds = set()
    for n in range(64):
        assert drawn['trained'][n] == present[n].any()
        if not present[n].any():
            assert score_loss[n] == box_loss[n] == 0
            continue
        candidates = [i for i, box in enumerate(proposals[n])
                      if np.array_equal(box, drawn['region'][n])]
        assert len(candidates) == 1
        region = proposals[n, candidates[0]].astype(np.float64)
        overlaps = [overlap(region, box) if there else 0
                    for box, there in zip(boxes[n], present[n], strict=True)]
        assert drawn['positive'][n] == (max(overlaps) >= 0.5)
        sign = 1 if max(overlaps) >= 0.5 else -1
        kinds.add(sign)
        assert score_loss[n] == pytest.approx(np.log1p(np.exp(-sign * scores[n])), rel=1e-5)
        if sign < 0:
            assert box_loss[n] == 0
            continue
        truth = boxes[n, int(np.argmax(overlaps))].astype(np.float64)
        np.testing.assert_array_equal(drawn['box'][n], np.float32(truth))
        sides, target = region[2:] - region[:2], np.zeros(4)
        target[:2] = 10 * ((truth[:2] + truth[2:]) - (region[:2] + region[2:])) / 2 / sides
        target[2:] = 5 * np.log((truth[2:] - truth[:2]) / sides)
        off = np.abs(deltas[n] - target)
        expected = np.where(off < 1, off**2 / 2, off - 0.5).sum()
        assert box_loss[n] == pytest.approx(expected, rel=1e-4)
    assert kinds == {1, -1}


@pytest.mark.slow
def test_half_of_the_regions_are_positive_where_there_are_both_and_each_is_drawn_as_often():
    proposals = np.tile(np.float32([[0, 0, 9, 10], [0, 0, 10, 9], [0, 0, 3, 3], [5, 5, 30, 30],
                                    [20, 20, 30, 30]]), (4000, 1, 1))
    objects = np.tile(np.float32([[[0, 0, 10, 10]]]), (4000, 1, 1))
    batch = batch_of(objects, np.ones((4000, 1), bool))
    drawn = jax.device_get(rcnn.draw(proposals, batch))
    assert abs(drawn['positive'].mean() - 0.5) < 0.03
    shares = [(drawn['region'] == box).all(1).mean() for box in proposals[0]]
    np.testing.assert_allclose(shares, [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6], atol=0.03)
    for rows, positive in (([0, 1], True), ([2, 3, 4], False)):
        only = jax.device_get(rcnn.draw(proposals[:, rows], batch))
        assert (only['positive'] == positive).all()


def test_a_localizer_starts_both_networks():
    variables = {name: {part: part for part in ('stem', 'stage1', 'head', 'localizer')}
                 for name in ('params', 'batch_stats')}
    started = localizer_rcnn.started(variables)
    for parts in started.values():
        assert parts['rcnn'] == {'stem': 'stem', 'stage1': 'stage1'} and parts['head'] == 'head'
    assert localizer_rcnn.started(started) == started


def test_settings_that_cannot_work_are_one_sentence():
    config = few_rcnn.config('/nothing')
    config.model.localizer.crop_size = 3
    with pytest.raises(ConfigError, match='crop_size must be at least 4 pixels'):
        localizer_rcnn.create(config)
    config.model.localizer.update(crop_size=16, reduction=16)
    model = localizer_rcnn.create(config)
    with pytest.raises(ConfigError, match=r'reduction=16 leaves images of 2 x 2 pixels'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)),
                                          train=False))
