"""Weights are recognised by names and shapes, and go out and in again bit for bit."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resnet_jax import weights
from resnet_jax.errors import UserError
from resnet_jax.weights import names, recognise
from tests.weights import random_weights

NETWORKS = [
    *({'depth': depth} for depth in (18, 34, 50, 101, 152)),
    {'depth': 50, 'stride_in': 'v1'},
    {'depth': 18, 'shortcut': 'C'},
    {'family': 'cifar', 'depth': 20, 'shortcut': 'A'},
    {'family': 'cifar', 'depth': 14, 'shortcut': 'B'},
    {'family': 'cifar', 'depth': 8, 'shortcut': 'A', 'plain': True},
    {'family': 'vgg', 'depth': 16, 'batch_norm': False, 'width': 2},
    {'family': 'vgg', 'depth': 19, 'batch_norm': True, 'width': 2},
]


def write(folder, tensors, name='weights.safetensors', metadata=None):
    save_file(tensors, folder / name, metadata)
    return folder / name


@pytest.mark.parametrize('changes', NETWORKS, ids=lambda x: '-'.join(map(str, x.values())))
def test_out_and_in_again_is_bit_for_bit(changes, tmp_path):
    model = random_weights.fields(**changes)
    tensors = random_weights.tensors(model)
    variables = names.from_torch(tensors, model, 3)
    config = weights.read(write(tmp_path, tensors)).config
    config.model = model
    normalization = {'mean': np.float32([.1, .2, .3]), 'std': np.float32([.4, .5, .6])}
    weights.write_torchvision(
        tmp_path / 'out.safetensors', weights.Weights(config, variables, normalization, ''))

    out = load_file(tmp_path / 'out.safetensors')
    for name in tensors:
        np.testing.assert_array_equal(out.pop(name), tensors[name])
    # torchvision's normalised VGG has biases that do nothing.
    assert all(re.fullmatch(r'features\.\d+\.bias', n) and not out[n].any() for n in out)

    back = weights.read(tmp_path / 'out.safetensors')
    assert back.config.to_json() == config.to_json()
    for part in normalization:
        np.testing.assert_array_equal(back.normalization[part], normalization[part])
    assert names.to_torch(back.variables, model).keys() == names.to_torch(variables, model).keys()
    for name, array in names.to_torch(back.variables, model).items():
        np.testing.assert_array_equal(array, names.to_torch(variables, model)[name])


@pytest.mark.parametrize('changes', NETWORKS, ids=lambda x: '-'.join(map(str, x.values())))
def test_family_depth_and_variant_are_recognised(changes):
    # Neither the place of the stride nor missing shortcuts show in names or shapes.
    seen = {name: value for name, value in changes.items() if name not in ('stride_in', 'plain')}
    model = random_weights.fields(**changes)
    found = recognise.architecture(random_weights.tensors(model))
    assert found | seen == found
    assert (found['num_classes'], found['width']) == (7, model.width)


def test_prefixes_and_other_names_are_understood(tmp_path):
    cifar = random_weights.tensors(random_weights.fields(family='cifar', depth=8, shortcut='B'))
    named = {'module.' + name.replace('fc.', 'linear.').replace('downsample', 'shortcut'): array
             for name, array in cifar.items()}
    named['module.bn1.num_batches_tracked'] = np.array(7)
    found = weights.read(write(tmp_path, named))
    assert (found.origin, found.config.model.shortcut) == ('CIFAR', 'B')
    assert found.describe().startswith('cifar network of depth 8, 7 classes, shortcut B: ')

    vgg = random_weights.tensors(
        random_weights.fields(family='vgg', depth=16, batch_norm=False, width=2))
    renames = {'classifier.0': 'pre_logits.fc1', 'classifier.3': 'pre_logits.fc2',
               'classifier.6': 'head.fc'}
    timm = {}
    for name, array in vgg.items():
        module, part = name.rsplit('.', 1)
        if name == 'classifier.0.weight':
            array = array.reshape(len(array), -1, 7, 7)
        elif name == 'classifier.3.weight':
            array = array[:, :, None, None]
        timm[f'{renames.get(module, module)}.{part}'] = array
    found = weights.read(write(tmp_path, timm))
    assert found.origin == 'timm'
    for name, array in names.to_torch(found.variables, found.config.model).items():
        np.testing.assert_array_equal(array, vgg[name])


def test_hugging_face_and_timm_settings_are_heeded(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(depth=50))
    path = write(tmp_path, tensors)
    assert weights.read(path).config.model.stride_in == 'v1.5'
    np.testing.assert_allclose(weights.read(path).normalization['mean'], [.485, .456, .406])
    timm = {'pretrained_cfg': {'mean': [.5, .5, .5], 'std': [.25, .25, .25]}}
    (tmp_path / 'config.json').write_text(json.dumps(timm))
    found = weights.read(path, stride_in='v1')
    assert found.config.model.stride_in == 'v1'
    np.testing.assert_array_equal(found.normalization['std'], np.float32([.25, .25, .25]))
    assert (found.config.data.image_size, found.config.data.eval_resize) == (224, 256)
    np.testing.assert_array_equal(
        weights.read(path, mean=(.1, .2, .3)).normalization['mean'], np.float32([.1, .2, .3]))


@pytest.mark.parametrize(('change', 'told'), [
    (lambda t: t.pop('layer2.0.conv1.weight'), '1 missing: layer2.0.conv1.weight'),
    (lambda t: t.update({'extra.weight': np.ones(1, np.float32)}), '1 unknown: extra.weight'),
    (lambda t: t.update({'layer3.1.bn1.bias': np.ones(5, np.float32)}),
     r'1 of another shape: layer3.1.bn1.bias \(5 instead of 32\)'),
    (lambda t: t.update({'conv1.weight': t['conv1.weight'][..., :5, :5]}), 'behind a 5x5'),
    (lambda t: t.pop('fc.weight'), 'no classifier'),
    (lambda t: [t.pop(n) for n in list(t) if 'layer4.1' in n], 'in stages of 2, 2, 2, 1'),
    (lambda t: t.update({'fc.bias': np.ones(7, np.int64)}), 'has the type int64'),
    (lambda t: t.clear() or t.update(a=np.ones(1, np.float32)), 'neither those of torchvision'),
])
def test_tensors_that_make_no_network_are_listed(change, told, tmp_path):
    tensors = random_weights.tensors(random_weights.fields())
    change(tensors)
    with pytest.raises(UserError, match=told):
        weights.read(write(tmp_path, tensors))


def test_a_long_list_is_cut_short():
    model = random_weights.fields()
    with pytest.raises(UserError, match=r'102 missing: .*, and 90 more'):
        names.from_torch({}, model, 3)
