"""detectron2's .pkl files are recognised, and all that their tensors do not show is stored."""

import pickle

import flax
import jax
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax import weights
from resnet_jax.errors import UserError
from resnet_jax.models import rcnn
from resnet_jax.weights import detectron2_names, foreign, names, stored
from tests.weights import random_weights

KINDS = {'c4': detectron2_names.C4, 'fpn': detectron2_names.PYRAMID}


def model_of(kind, **changes):
    """`config.model` of a narrow ResNet-50."""
    config = config_lib.default()
    config.model.update({'family': 'imagenet', 'depth': 50, 'num_classes': 80, 'width': 2})
    config.model.detector.update({
        'kind': kind, 'masks': True, 'rpn_features': 32 if kind == 'c4' else 4, 'neck_features': 4,
        'box_features': 5, 'mask_features': 3, **changes})
    return config.model


def tensors(kind, **changes):
    return random_weights.tensors(model_of(kind, **changes), known=foreign.FAMILIES[KINDS[kind]])


def read(folder, found, **wrapper):
    (folder / 'model.pkl').write_bytes(pickle.dumps({'model': found, **wrapper}, 2))
    return weights.read(folder / 'model.pkl')


@pytest.mark.parametrize(('kind', 'depth', 'masks', 'count'), [
    ('c4', 50, False, 33_844_764), ('c4', 101, False, 52_836_892), ('c4', 50, True, 35_962_732),
    ('c4', 101, True, 54_954_860), ('fpn', 50, False, 41_753_056),
    ('fpn', 50, True, 44_396_336)])
def test_parameters_are_as_many_as_detectron2s(kind, depth, masks, count):
    model = config_lib.default().model
    model.update({'family': 'imagenet', 'depth': depth, 'num_classes': 80})
    model.detector.update({'kind': kind, 'masks': masks})
    found = names.leaves(model, 3, foreign.FAMILIES[KINDS[kind]])
    assert sum(int(np.prod(leaf.shape)) for leaf in found if leaf.path[0] == 'params') == count


@pytest.mark.slow
def test_names_and_shapes_are_detectron2s():
    reference = pytest.importorskip(
        'tests.models.detectron2_reference', reason='the reference needs torchvision')
    for kind, known in KINDS.items():
        for depth in (50, 101):
            model = config_lib.default().model
            model.update({'family': 'imagenet', 'depth': depth, 'num_classes': 80})
            model.detector.update({'kind': kind, 'masks': True})
            ours = {name: leaf.torch_shape() for leaf in names.leaves(
                model, 3, foreign.FAMILIES[known]) for name in leaf.tensors}
            assert ours == reference.shapes(kind, depth, masks=True)


@pytest.mark.parametrize('kind', ['c4', 'fpn'])
def test_a_detector_is_read_with_all_that_inference_needs(kind, tmp_path):
    found = tensors(kind)
    anchors = {f'proposal_generator.anchor_generator.cell_anchors.{i}': np.zeros((15, 4), 'f4')
               for i in range(1 if kind == 'c4' else 5)}
    ours = read(tmp_path, found | anchors, __author__='Detectron2 Model Zoo')
    model = ours.config.model
    assert ours.origin == 'detectron2' and ours.config.task == 'detection'
    assert (model.depth, model.width, model.num_classes) == (50, 2, 80)
    assert (model.stride_in, model.pool_pad, model.bn_epsilon) == ('v1', 'both', 1e-5)
    assert (ours.config.data.canvases, ours.config.data.long_side) == (((1344, 800),), 1333)
    s = rcnn.create(ours.config).settings
    assert (s.kind, s.masks, s.anchor_rule, s.roi_points) == (kind, True, 'detectron2', 0)
    assert (s.roi_aligned, s.background_box, s.nms, s.detections) == (True, False, 0.5, 100)
    assert s.rpn_pre_nms[1] == (6000 if kind == 'c4' else 1000) and s.rpn_post_nms[1] == 1000
    assert (s.roi_size, s.rpn_features) == ((14, 32) if kind == 'c4' else (7, 4))
    # Grey levels from 0 to 255, less the mean colour, red first.
    np.testing.assert_allclose(ours.normalization['mean'] * 255, [123.675, 116.28, 103.53],
                               rtol=1e-6)
    np.testing.assert_allclose(ours.normalization['std'], 1 / 255, rtol=1e-6)
    params = ours.variables['params']
    stem = 'backbone.stem' if kind == 'c4' else 'backbone.bottom_up.stem'
    np.testing.assert_array_equal(params['stem']['conv']['kernel'],
                                  found[f'{stem}.conv1.weight'][:, ::-1].transpose(2, 3, 1, 0))
    last = 'roi_heads.res5' if kind == 'c4' else 'backbone.bottom_up.res5'
    np.testing.assert_array_equal(
        ours.variables['batch_stats']['stage4']['blocks']['norm3']['var'][1],
        found[f'{last}.2.conv3.norm.running_var'])
    np.testing.assert_array_equal(  # the background is last in both
        params['box']['score']['kernel'], found['roi_heads.box_predictor.cls_score.weight'].T)
    np.testing.assert_array_equal(
        params['mask']['deconv']['kernel'],
        found['roi_heads.mask_head.deconv.weight'].transpose(2, 3, 0, 1))
    if kind == 'fpn':
        np.testing.assert_array_equal(  # channels come first where a map is flattened
            params['hidden']['fc6']['kernel'], found['roi_heads.box_head.fc1.weight'].reshape(
                5, 4, 7, 7).transpose(2, 3, 1, 0))
    assert (len(ours.classes), ours.classes[0], ours.classes[79]) == (80, 'person', 'toothbrush')
    assert (ours.classes[11], 'N/A' in ours.classes) == ('stop sign', False)
    assert 'Faster R-CNN' in ours.describe() and 'stride v1' in ours.describe()

    stored.write(tmp_path / 'stored', ours, ours.classes)
    again = stored.read(tmp_path / 'stored')
    assert again.config.to_json() == ours.config.to_json()
    jax.tree.map(np.testing.assert_array_equal, again.variables, ours.variables)


def test_colours_of_the_file_come_first(tmp_path):
    """A detector that started from a network of torchvision's sees red first."""
    found = tensors('c4', masks=False)
    ours = read(tmp_path, found | {
        'pixel_mean': np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1),
        'pixel_std': np.float32([58.395, 57.12, 57.375]).reshape(3, 1, 1)})
    np.testing.assert_allclose(ours.normalization['mean'], [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(ours.normalization['std'], [0.229, 0.224, 0.225], rtol=1e-6)
    np.testing.assert_array_equal(
        ours.variables['params']['stem']['conv']['kernel'],
        found['backbone.stem.conv1.weight'].transpose(2, 3, 1, 0))


def caffe2(found, eps=1e-5):
    """Tensors under torchvision's names as Detectron's script writes them."""
    blobs = {'fc1000_w': found['fc.weight'], 'fc1000_b': found['fc.bias']}

    def add(name, norm_name, conv, norm):
        scale = found[f'{norm}.weight'] / np.sqrt(found[f'{norm}.running_var'] + eps)
        blobs[f'{name}_w'] = found[f'{conv}.weight']
        blobs[f'{name}_b'] = np.zeros_like(scale)
        blobs[f'{norm_name}_bn_s'] = scale
        blobs[f'{norm_name}_bn_b'] = found[f'{norm}.bias'] - scale * found[f'{norm}.running_mean']

    add('conv1', 'res_conv1', 'conv1', 'bn1')
    blobs['conv1_w'] = blobs['conv1_w'][:, ::-1].copy()
    for prefix in sorted({name.rsplit('.conv', 1)[0] for name in found if '.conv' in name}):
        stage, block = int(prefix[5]) + 1, prefix.split('.')[1]
        for i, letter in enumerate('abc', 1):
            name = f'res{stage}_{block}_branch2{letter}'
            add(name, name, f'{prefix}.conv{i}', f'{prefix}.bn{i}')
        if f'{prefix}.downsample.0.weight' in found:
            name = f'res{stage}_{block}_branch1'
            add(name, name, f'{prefix}.downsample.0', f'{prefix}.downsample.1')
    return blobs


@pytest.mark.parametrize('depth', [50, 101])
def test_a_classifier_of_msra_is_the_caffe_model(depth, tmp_path):
    found = random_weights.tensors(random_weights.fields(depth=depth, width=2))
    bias = np.float32([.25, -.5])
    blobs = caffe2(found)
    blobs['conv1_b'] = bias
    (tmp_path / 'R.pkl').write_bytes(pickle.dumps(blobs, 2))
    (tmp_path / 'R.caffemodel').write_bytes(random_weights.caffemodel(
        found, conv1_bias=bias, many=depth > 50))
    ours, other = (weights.read(tmp_path / name) for name in ('R.pkl', 'R.caffemodel'))
    assert ours.config.to_json() == other.config.to_json() and ours.origin == 'Caffe2'
    for part, value in other.normalization.items():
        np.testing.assert_array_equal(ours.normalization[part], value)

    def lines(read):
        """Scale and offset of every normalisation, and all else as it is."""
        params, stats = (flax.traverse_util.flatten_dict(dict(read.variables[part]))
                         for part in ('params', 'batch_stats'))
        found = dict(params)
        for path, mean in stats.items():
            if path[-1] == 'mean':
                norm = path[:-1]
                scale = params[*norm, 'scale'] / np.sqrt(
                    stats[*norm, 'var'] + read.config.model.bn_epsilon)
                found[*norm, 'scale'] = scale
                found[*norm, 'bias'] = params[*norm, 'bias'] - mean * scale
        return found

    first, second = lines(ours), lines(other)
    assert set(first) == set(second)
    for path, value in first.items():
        np.testing.assert_allclose(value, second[path], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(('kind', 'change', 'sentence'), [
    ('fpn', lambda found: found.pop('roi_heads.box_head.fc2.weight'),
     'not Faster or Mask R-CNN of its model zoo: it has no roi_heads.box_head.fc2.weight'),
    ('fpn', lambda found: found.pop('backbone.fpn_output3.bias'),
     '1 missing: backbone.fpn_output3.bias'),
    ('c4', lambda found: found.update({'roi_heads.keypoint_head.score.bias': np.zeros(3, 'f4')}),
     '1 unknown: roi_heads.keypoint_head.score.bias'),
    ('c4', lambda found: found.pop('roi_heads.box_predictor.cls_score.weight'),
     'of the networks of detectron2, Faster and Mask R-CNN can be read'),
    ('c4', lambda found: found.update(pixel_mean=np.zeros(4, 'f4')),
     'pixel_mean and pixel_std must have three numbers'),
    ('c4', lambda found: [found.pop(name) for name in list(found) if 'norm.running' in name],
     'missing|without running statistics')])
def test_what_does_not_fit_is_named(tmp_path, kind, change, sentence):
    found = tensors(kind)
    change(found)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, found)


def test_a_detector_of_detectron_is_refused(tmp_path):
    blobs = caffe2(random_weights.tensors(random_weights.fields(depth=50, width=2)))
    blobs['rpn_cls_logits_fpn2_w'] = np.zeros((3, 4), np.float32)
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps({'blobs': blobs}, 2))
    with pytest.raises(UserError, match='only its classifiers can be read'):
        weights.read(tmp_path / 'model.pkl')
