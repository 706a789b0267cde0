"""A .pkl of detectron2 finds here what detectron2's rules find: C4 and pyramid, boxes and masks.

detectron2 itself cannot be installed from a package registry, so the reference is PyTorch's
operations put together by its rules. Everything is compared in front of the thresholds as well.
"""

import pickle

import jax
import numpy as np
import pytest

from resnet_jax import weights
from resnet_jax.models import rcnn
from resnet_jax.tasks.detection import inference
from tests.models import detectron2_reference as reference
from tests.models.test_rcnn_parity import assert_matched, everything
from tests.weights.torch_networks import difference, to_numpy, torch

SIZES = [(160, 256), (192, 224), (150, 199)]  # of which two are padded
PROPOSALS = 60
CLASSES = 20


def photos():
    """uint8 RGB images [height, width, 3]; noise of two sizes, so that regions differ."""
    torch.manual_seed(1)
    coarse = torch.nn.functional.interpolate(
        torch.randn(len(SIZES), 3, 16, 16), (256, 256), mode='bilinear')
    noise = (coarse + 0.5 * torch.randn(len(SIZES), 3, 256, 256)) * 50 + 128
    return [x[:, :height, :width].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
            for x, (height, width) in zip(noise, SIZES, strict=True)]


def canvas(images):
    """Float images [height, width, 3] in the upper left corners of a batch of zeros."""
    batch = np.zeros((len(images), 192, 256, 3), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[:image.shape[0], :image.shape[1]] = image
    return batch


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['c4', 'fpn'])
def test_it_detects_what_detectron2_detects(kind, tmp_path):
    theirs_in = torch.from_numpy(canvas([
        x[..., ::-1].astype(np.float32) - np.float32(reference.PIXEL_MEAN)
        for x in photos()]).transpose(0, 3, 1, 2).copy())
    theirs = reference.Detector(kind, theirs_in, SIZES, PROPOSALS, masks=True, width=16,
                                classes=CLASSES, features=32, dense=64)
    with open(tmp_path / 'model_final.pkl', 'wb') as file:
        pickle.dump(theirs.pickled(), file, protocol=2)
    expected, between = theirs(theirs_in, SIZES)

    found = weights.read(tmp_path / 'model_final.pkl')
    found.config.model.detector.rpn_post_nms = (PROPOSALS, PROPOSALS)
    found.config.model.unroll = False
    model, variables = rcnn.create(found.config), found.variables
    mean, std = found.normalization['mean'], found.normalization['std']
    images = canvas([(x / np.float32(255) - mean) / std for x in photos()])
    regions = np.stack([box.numpy() for box, _ in between['proposals']])
    assert regions.shape == (len(SIZES), PROPOSALS, 4)
    sizes = np.int32(SIZES)
    features, _, proposals, outputs, detections = jax.device_get(
        everything(model, variables, images, sizes, regions))

    count = len(SIZES), PROPOSALS
    errors = {
        **{f'level {i}': difference(ours, to_numpy(x)) for i, (ours, x) in enumerate(
            zip(jax.tree.leaves(features), between['levels'], strict=True))},
        'scores': difference(outputs[0], between['scores'].reshape(*count, -1).numpy()),
        'deltas': difference(outputs[1], between['deltas'].reshape(*count, -1, 4).numpy())}
    print(kind, ', '.join(f'{name} {error:.1e}' for name, error in errors.items()))
    assert max(errors.values()) < 1e-4
    for i, (boxes, scores, classes, _) in enumerate(expected):
        assert proposals.valid[i].all()
        one_class = np.zeros(PROPOSALS)
        _, theirs_scores = between['proposals'][i]
        assert_matched(proposals.boxes[i], 1 / (1 + np.exp(-proposals.scores[i])), one_class,
                       regions[i], theirs_scores.sigmoid().numpy(), one_class)
        assert len(boxes) == 100 and len(set(classes.tolist())) > CLASSES / 2
        valid = detections.valid[i]
        assert_matched(detections.boxes[i][valid], detections.scores[i][valid],
                       detections.classes[i][valid], boxes.numpy(), scores.numpy(),
                       classes.numpy())

    boxes, scores, classes, masks = (
        np.stack([x[part].numpy() for x in expected]) for part in range(4))
    assert masks.shape[2:] == ((14, 14) if kind == 'c4' else (28, 28)) and masks.std() > 0.1
    got = jax.jit(lambda variables, images: inference.masks(
        model, variables, model.apply(variables, images, train=False, method='trunk'),
        rcnn.Detections(boxes, scores, classes.astype(np.int32), np.ones(scores.shape, bool))))(
            variables, images)
    np.testing.assert_allclose(got, masks, atol=1e-3)
