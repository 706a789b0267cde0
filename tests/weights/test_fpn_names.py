"""torchvision's detector with a feature pyramid comes in and goes out bit for bit."""

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from resnet_jax import config as config_lib
from resnet_jax import weights
from resnet_jax.errors import UserError
from tests.weights import random_weights


def tensors(classes=90, masks=False):
    """Those of a narrow ResNet-18, with random numbers."""
    config = config_lib.default()
    config.model.update({'family': 'imagenet', 'depth': 18, 'num_classes': classes, 'width': 8})
    config.model.detector.update({
        'kind': 'fpn', 'preset': 'torchvision', 'background_box': True, 'neck_features': 4,
        'rpn_features': 6, 'box_features': 5, 'masks': masks, 'mask_features': 3})
    return random_weights.tensors(config.model)


def read(folder, found):
    save_file(found, folder / 'weights.safetensors')
    return weights.read(folder / 'weights.safetensors')


def test_names_shapes_and_order_are_torchvisions():
    found = {name: tensor.shape for name, tensor in tensors().items()}
    assert found['backbone.body.layer4.1.bn2.running_var'] == (64,)
    assert found['backbone.fpn.inner_blocks.3.0.weight'] == (4, 64, 1, 1)
    assert found['backbone.fpn.layer_blocks.0.0.bias'] == (4,)
    assert found['rpn.head.conv.0.0.weight'] == (6, 4, 3, 3)
    assert found['rpn.head.cls_logits.weight'] == (3, 6, 1, 1)
    assert found['roi_heads.box_head.fc6.weight'] == (5, 4 * 7 * 7)
    assert found['roi_heads.box_predictor.bbox_pred.weight'] == (364, 5)


def test_a_detector_goes_in_and_out_bit_for_bit(tmp_path):
    found = tensors()
    ours = read(tmp_path, found)
    assert ours.config.task == 'detection'
    assert (ours.config.model.depth, ours.config.model.width) == (18, 8)
    assert ours.config.model.bn_epsilon == 0
    assert ours.config.data.canvases == ((1344, 800),)
    assert ours.classes[0] == 'person' and ours.classes[89] == 'toothbrush'
    assert (len(ours.classes), ours.classes.count('N/A')) == (90, 10)
    assert 'epsilon 0' in ours.describe()
    # Background is the last class here, and the first one there.
    box = ours.variables['params']['box']
    np.testing.assert_array_equal(
        box['score']['bias'], np.roll(found['roi_heads.box_predictor.cls_score.bias'], -1))
    np.testing.assert_array_equal(
        box['delta']['bias'][:4], found['roi_heads.box_predictor.bbox_pred.bias'][4:8])
    file = weights.to_torchvision(ours)
    out = load(file)
    assert set(out) == set(found)
    for name, tensor in found.items():
        np.testing.assert_array_equal(out[name], tensor)
    # What the tensors do not show comes back too.
    ours.config.model.bn_epsilon = 1e-5
    ours.config.data.canvases, ours.config.data.image_size = (), (320, 320)
    (tmp_path / 'own.safetensors').write_bytes(weights.to_torchvision(ours))
    assert weights.read(tmp_path / 'own.safetensors').config.to_json() == ours.config.to_json()


def test_a_mask_branch_goes_in_and_out_bit_for_bit(tmp_path):
    found = tensors(masks=True)
    assert found['roi_heads.mask_predictor.conv5_mask.weight'].shape == (3, 3, 2, 2)
    assert found['roi_heads.mask_predictor.mask_fcn_logits.weight'].shape == (91, 3, 1, 1)
    older = {name.replace('mask_head.0.0.', 'mask_head.mask_fcn1.'): tensor
             for name, tensor in found.items()}
    ours = read(tmp_path, older)
    assert ours.config.model.detector.masks
    mask = ours.variables['params']['mask']
    np.testing.assert_array_equal(
        mask['deconv']['kernel'],
        found['roi_heads.mask_predictor.conv5_mask.weight'].transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(
        mask['score']['bias'],
        np.roll(found['roi_heads.mask_predictor.mask_fcn_logits.bias'], -1))
    out = load(weights.to_torchvision(ours))
    assert set(out) == set(found)
    assert all(np.array_equal(out[name], tensor) for name, tensor in found.items())


def test_older_names_mean_the_same(tmp_path):
    found = tensors(classes=4)
    older = {name.replace('conv.0.0.', 'conv.') if 'rpn' in name else
             name.replace('.0.weight', '.weight').replace('.0.bias', '.bias')
             if 'fpn' in name else name: tensor for name, tensor in found.items()}
    assert 'backbone.fpn.inner_blocks.1.weight' in older and 'rpn.head.conv.bias' in older
    ours = read(tmp_path, older)
    assert ours.classes is None
    out = load(weights.to_torchvision(ours))
    assert all(np.array_equal(out[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda found: found.pop('roi_heads.box_head.fc7.weight'),
     'or maskrcnn_resnet50_fpn: it has no roi_heads.box_head.fc7.weight'),
    (lambda found: found.pop('backbone.fpn.layer_blocks.2.0.bias'),
     '1 missing: backbone.fpn.layer_blocks.2.0.bias'),
    (lambda found: found.update({'roi_heads.mask_head.0.0.bias': np.zeros(3, np.float32)}),
     '1 unknown: roi_heads.mask_head.0.0.bias')])
def test_what_does_not_fit_is_named(tmp_path, change, sentence):
    found = tensors()
    change(found)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, found)
