"""Our Faster R-CNN with a feature pyramid finds what torchvision's fasterrcnn_resnet50_fpn does.

Its weights come in through the file that `convert` reads, and go out again bit for bit. Everything
is compared in front of the thresholds as well, at which rounding can decide.
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import load, save_file

from resnet_jax import weights
from resnet_jax.models import rcnn
from resnet_jax.tasks.detection import inference
from tests.models import torchvision_fpn as fpn
from tests.models.test_rcnn_parity import assert_matched, everything, proposals_of
from tests.weights.torch_networks import difference, to_numpy, torch

SIZES = np.int32([[160, 224], [192, 256], [256, 160], [128, 250], [201, 199]])
PROPOSALS = 60


def images():
    """Of different shapes; noise of two sizes, so that regions differ."""
    torch.manual_seed(1)
    coarse = torch.nn.functional.interpolate(
        torch.randn(len(SIZES), 3, 16, 16), (256, 256), mode='bilinear')
    fine = torch.randn(len(SIZES), 3, 256, 256)
    return [(image + 0.5 * noise)[:, :height, :width]
            for image, noise, (height, width) in zip(coarse, fine, SIZES.tolist(), strict=True)]


@pytest.mark.slow
def test_it_detects_what_torchvision_detects_and_converts_both_ways_bit_for_bit(tmp_path):
    theirs = fpn.detector(images(), PROPOSALS)
    assert sum(x.numel() for x in theirs.parameters()) == 41_755_286
    state = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / 'fasterrcnn.safetensors')
    found = weights.read(tmp_path / 'fasterrcnn.safetensors')
    back = load(weights.to_torchvision(found))
    assert set(back) == set(state)
    assert all(np.array_equal(back[name], tensor) for name, tensor in state.items())
    # In torchvision the scales and offsets of normalisation are buffers.
    affine = sum(x.size for name, x in state.items() if name.endswith('running_mean')) * 2
    count = sum(x.size for x in jax.tree.leaves(found.variables['params']))
    assert (count, affine) == (41_755_286 + 53_120, 53_120)

    found.config.model.detector.rpn_post_nms = (PROPOSALS, PROPOSALS)
    found.config.model.unroll = False
    model = rcnn.create(found.config)
    batch, _ = theirs.transform(images())
    assert batch.image_sizes == [tuple(size) for size in SIZES.tolist()]
    maps = theirs.backbone(batch.tensors)
    scores, deltas = theirs.rpn.head(list(maps.values()))
    regions, region_scores = proposals_of(theirs.rpn, batch, maps)
    pooled = theirs.roi_heads.box_roi_pool(maps, regions, batch.image_sizes)
    described = theirs.roi_heads.box_head(pooled)
    class_scores, class_deltas = theirs.roi_heads.box_predictor(described)

    features, rpn, proposals, outputs, detections = jax.device_get(everything(
        model, found.variables, to_numpy(batch.tensors), SIZES, torch.stack(regions).numpy()))

    def rows(levels, *shape):
        """[N, A * k, h, w] of each level -> [N, all h * w * A, k]."""
        return torch.cat([
            x.unflatten(1, (3, -1)).permute(0, 3, 4, 1, 2).reshape(len(SIZES), -1, *shape)
            for x in levels], 1).numpy()

    count = len(SIZES), PROPOSALS
    errors = {
        **{f'features of {name}': difference(ours, to_numpy(x))
           for ours, (name, x) in zip(features, maps.items(), strict=True)},
        'proposal scores': difference(rpn[0], rows(scores)),
        'proposal deltas': difference(rpn[1], rows(deltas, 4)),
        'scores': difference(np.roll(outputs[0], 1, -1), class_scores.reshape(*count, -1).numpy()),
        'deltas': difference(outputs[1], class_deltas.reshape(*count, -1, 4)[:, :, 1:].numpy())}
    print(', '.join(f'{name} {error:.1e}' for name, error in errors.items()))
    assert max(errors.values()) < 1e-4

    for i, expected in enumerate(theirs(images())):
        assert proposals.valid[i].all()
        one_class = np.zeros(PROPOSALS)
        assert_matched(proposals.boxes[i], 1 / (1 + np.exp(-proposals.scores[i])), one_class,
                       regions[i].numpy(), region_scores[i].numpy(), one_class)
        assert len(expected['scores']) == 100
        assert len(set(expected['labels'].tolist())) > 20
        valid = detections.valid[i]
        assert_matched(detections.boxes[i][valid], detections.scores[i][valid],
                       detections.classes[i][valid], expected['boxes'].numpy(),
                       expected['scores'].numpy(), expected['labels'].numpy() - 1)


@pytest.mark.slow
def test_its_masks_are_torchvisions(tmp_path):
    """Masks of the boxes that torchvision detects, as probabilities of cells."""
    some = images()[:2]
    theirs = fpn.detector(some, PROPOSALS, masks=True)
    assert sum(x.numel() for x in theirs.parameters()) == 44_401_393
    state = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / 'maskrcnn.safetensors')
    found = weights.read(tmp_path / 'maskrcnn.safetensors')
    back = load(weights.to_torchvision(found))
    assert set(back) == set(state)
    assert all(np.array_equal(back[name], tensor) for name, tensor in state.items())

    pasted = []  # what is pasted into the image: one mask per detection
    theirs.transform.postprocess = lambda result, *sizes: pasted.extend(result) or result
    theirs(some)
    batch, _ = theirs.transform(some)
    boxes = torch.stack([x['boxes'] for x in pasted]).numpy()
    classes = np.stack([x['labels'] for x in pasted]).astype(np.int32) - 1
    expected = torch.stack([x['masks'][:, 0] for x in pasted]).numpy()
    assert expected.shape == (2, 100, 28, 28) and expected.std() > 0.1
    found.config.model.unroll = False
    model = rcnn.create(found.config)

    @jax.jit
    def masks(variables, image):
        features = model.apply(variables, image, train=False, method='trunk')
        return inference.masks(model, variables, features, rcnn.Detections(
            boxes, np.ones((2, 100)), classes, np.ones((2, 100), bool)))

    got = masks(found.variables, to_numpy(batch.tensors))
    np.testing.assert_allclose(got, expected, atol=1e-3)
