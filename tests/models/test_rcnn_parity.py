"""Our Faster R-CNN with torchvision's weights finds what torchvision's does, and its losses agree.

Every comparison is also made in front of the thresholds, at which rounding can decide.
"""

import functools

import jax
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.models import detectors, rcnn
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.sampling import Sample
from resnet_jax.tasks.detection import inference, losses
from tests.models import torchvision_c4 as c4
from tests.weights.torch_networks import difference, to_numpy, torch

detection = c4.torchvision.models.detection
SIZES = np.int32([[160, 224], [160, 192]])  # the second image is padded


def config_of(depth, proposals):
    config = config_lib.default()
    fields = config.model
    fields.family, fields.depth, fields.num_classes = 'imagenet', depth, c4.CLASSES
    fields.stride_in, fields.unroll = 'v1.5', False
    fields.detector.preset = 'torchvision'
    fields.detector.rpn_features = 1024 if depth >= 50 else 256
    fields.detector.rpn_post_nms = (proposals, proposals)
    return config


@functools.partial(jax.jit, static_argnums=0)
def everything(model, variables, images, sizes, regions):
    """All that there is between an image and its detections, and `heads` for given regions."""
    features, proposals = inference.propose(model, variables, images, sizes)
    rpn = model.apply(variables, features, method=lambda module, x: module.rpn(x))
    outputs = model.apply(variables, features, regions, sizes, train=False, method='heads')
    probabilities, boxes = inference.classify(model, variables, features, proposals.boxes, sizes)
    found = rcnn.select(model, probabilities, boxes, proposals.valid)
    return features, rpn, proposals, outputs, found


def assert_matched(boxes, scores, classes, other_boxes, other_scores, other_classes):
    """Each has a partner of its class, IoU > 0.999 and the same score up to 1e-4, and only one."""
    assert len(boxes) == len(other_boxes)
    fits = (np.asarray(boxes_lib.iou(boxes, other_boxes)) > 0.999) & (
        np.abs(scores[:, None] - other_scores) < 1e-4) & (classes[:, None] == other_classes)
    np.testing.assert_array_equal(fits.sum(0), 1)
    np.testing.assert_array_equal(fits.sum(1), 1)


def proposals_of(network, batch, maps):
    """Boxes and scores, which torchvision's network does not return, of the proposals it makes."""
    found, choose = [], network.filter_proposals
    network.filter_proposals = lambda *args: found.append(choose(*args)) or found[-1]
    network(batch, maps)
    network.filter_proposals = choose
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize(('depth', 'proposals'), [(18, 100), (50, 40)])
def test_it_detects_what_torchvision_detects(depth, proposals):
    torch.manual_seed(1)
    images = [torch.randn(3, *size) for size in SIZES.tolist()]
    theirs = c4.detector(depth, images, proposals)
    config = config_of(depth, proposals)
    model, variables = rcnn.create(config), c4.variables(theirs, config.model)

    batch, _ = theirs.transform(images)
    assert batch.image_sizes == [tuple(size) for size in SIZES.tolist()]
    features = theirs.backbone(batch.tensors)
    (scores,), (deltas,) = theirs.rpn.head([features])
    regions, region_scores = proposals_of(theirs.rpn, batch, {'0': features})
    assert [len(x) for x in regions] == [proposals] * 2
    pooled = theirs.roi_heads.box_roi_pool({'0': features}, regions, batch.image_sizes)
    class_scores, class_deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))

    ours = jax.device_get(everything(
        model, variables, to_numpy(batch.tensors), SIZES, torch.stack(regions).numpy()))
    our_features, our_rpn, our_proposals, our_outputs, found = ours

    def channels_last(x, *shape):
        """[N, A * k, h, w] -> [N, h * w * A, k]."""
        x = x.unflatten(1, (15, -1)).permute(0, 3, 4, 1, 2)
        return x.reshape(2, -1, *shape).numpy()

    errors = {
        'features': difference(our_features, to_numpy(features)),
        'proposal scores': difference(our_rpn[0], channels_last(scores)),
        'proposal deltas': difference(our_rpn[1], channels_last(deltas, 4)),
        'scores': difference(np.roll(our_outputs[0], 1, -1),
                             class_scores.reshape(2, proposals, -1).numpy()),
        'deltas': difference(our_outputs[1],
                             class_deltas.reshape(2, proposals, -1, 4)[:, :, 1:].numpy())}
    print(depth, ', '.join(f'{name} {error:.1e}' for name, error in errors.items()))
    assert max(errors.values()) < 1e-4

    for i, expected in enumerate(theirs(images)):
        assert our_proposals.valid[i].all()
        one_class = np.zeros(proposals)
        assert_matched(our_proposals.boxes[i], 1 / (1 + np.exp(-our_proposals.scores[i])),
                       one_class, regions[i].numpy(), region_scores[i].numpy(), one_class)
        assert len(expected['scores']) == 100
        assert set(expected['labels'].tolist()) == set(range(1, c4.CLASSES + 1))
        valid = found.valid[i]
        assert_matched(found.boxes[i][valid], found.scores[i][valid], found.classes[i][valid],
                       expected['boxes'].numpy(), expected['scores'].numpy(),
                       expected['labels'].numpy() - 1)


class Drawn:
    """Stands for torchvision's sampler, with what was drawn already."""

    def __init__(self, positive, negative):
        self.masks = [[torch.from_numpy(row) for row in mask] for mask in (positive, negative)]

    def __call__(self, labels):
        return self.masks


def random_boxes(rng, *shape):
    corner = rng.uniform(0, 100, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 100, (*shape, 2))], -1).astype(
        np.float32)


def test_losses_of_given_anchors_equal_torchvisions():
    rng = np.random.default_rng(0)
    s = detectors.PRESETS['torchvision']
    anchors, boxes = random_boxes(rng, 600), random_boxes(rng, 2, 5)
    scores = rng.normal(size=(2, 600)).astype(np.float32)
    deltas = rng.normal(size=(2, 600, 4)).astype(np.float32)
    index = rng.integers(5, size=(2, 600)).astype(np.int32)
    drawn = np.stack([rng.permutation(600)[:256] for _ in range(2)]).astype(np.int32)
    positive = np.arange(256) < np.array([[100], [3]])
    got = jax.jit(losses.anchor_losses, static_argnums=0)(
        s, scores, deltas, anchors, Sample(drawn, positive, ~positive), index, boxes)

    masks = np.zeros((2, 2, 600), bool)
    for i in range(2):
        masks[0, i, drawn[i][positive[i]]] = masks[1, i, drawn[i][~positive[i]]] = True
    rpn = detection.rpn.RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
    rpn.fg_bg_sampler = Drawn(*masks)
    matched = [torch.from_numpy(boxes[i][index[i]]) for i in range(2)]
    expected = rpn.compute_loss(
        torch.from_numpy(scores).reshape(-1, 1), torch.from_numpy(deltas).reshape(-1, 4),
        [torch.from_numpy(mask.astype(np.float32)) for mask in masks[0]],
        rpn.box_coder.encode(matched, [torch.from_numpy(anchors)] * 2))
    np.testing.assert_allclose([part.mean() for part in got], [x.item() for x in expected],
                               rtol=1e-5)


def test_losses_of_given_regions_equal_torchvisions():
    rng = np.random.default_rng(1)
    s = detectors.PRESETS['torchvision']
    count, classes = s.roi_batch, 7
    boxes, targets = random_boxes(rng, 2, count), random_boxes(rng, 2, count)
    scores = rng.normal(size=(2, count, classes + 1)).astype(np.float32)
    deltas = rng.normal(size=(2, count, classes + 1, 4)).astype(np.float32)
    positive = np.arange(count) < np.array([[128], [2]])
    labels = np.where(positive, rng.integers(1, classes + 1, (2, count)), 0)  # 0 is background
    got = jax.jit(losses.region_losses, static_argnums=0)(
        s, np.roll(scores, -1, -1), deltas[:, :, 1:], losses.Regions(
            boxes, (labels - 1) % (classes + 1), targets, positive, np.ones_like(positive)))

    coder = detection._utils.BoxCoder(s.box_weights)
    encoded = coder.encode([torch.from_numpy(x) for x in targets],
                           [torch.from_numpy(x) for x in boxes])
    expected = detection.roi_heads.fastrcnn_loss(
        torch.from_numpy(scores).flatten(0, 1), torch.from_numpy(deltas).reshape(2 * count, -1),
        [torch.from_numpy(x) for x in labels], encoded)
    np.testing.assert_allclose([part.mean() for part in got], [x.item() for x in expected],
                               rtol=1e-5)
