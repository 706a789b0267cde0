"""Weights are recognised by names and shapes, and go out and in again bit for bit."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resnet_jax import weights
from resnet_jax.errors import UserError
from resnet_jax.weights import beside, names
from tests.weights import random_weights

NETWORKS = [
    *({'depth': depth} for depth in (18, 34, 50, 101, 152)),
    {'depth': 50, 'stride_in': 'v1'},
    {'depth': 18, 'shortcut': 'C'},
    {'family': 'cifar', 'depth': 20, 'shortcut': 'A'},
    {'family': 'cifar', 'depth': 14, 'shortcut': 'B'},
    {'family': 'cifar', 'depth': 8, 'shortcut': 'A', 'plain': True},
    {'family': 'cifar', 'depth': 20, 'shortcut': 'A', 'bottleneck': True},
    {'depth': 50, 'groups': 4, 'bottleneck_width': 16},
    {'depth': 101, 'bottleneck_width': 16},
    {'depth': 50, 'bottleneck_width': 4},
    {'depth': 18, 'deep_stem': True, 'shortcut': 'D'},
    {'depth': 50, 'deep_stem': True, 'shortcut': 'D', 'stem_width': 12, 'groups': 8},
    {'depth': 50, 'deep_stem': True},
    {'family': 'imagenet_v2', 'depth': 50},
    {'family': 'imagenet_v2', 'depth': 101, 'groups': 2, 'bottleneck_width': 16},
    {'family': 'cifar_v2', 'depth': 20, 'shortcut': 'A'},
    {'family': 'cifar_v2', 'depth': 29, 'shortcut': 'B', 'bottleneck': True},
    {'family': 'vgg', 'depth': 16, 'batch_norm': False, 'width': 2},
    {'family': 'vgg', 'depth': 19, 'batch_norm': True, 'width': 2},
]


CIFAR = {'mean': (.4914, .4822, .4465), 'std': (.2470, .2435, .2616)}


def write(folder, tensors, name='weights.safetensors', metadata=None):
    save_file(tensors, folder / name, metadata)
    return folder / name


@pytest.mark.parametrize('changes', NETWORKS, ids=lambda x: '-'.join(map(str, x.values())))
def test_networks_are_recognised_and_go_out_and_in_again_bit_for_bit(changes, tmp_path):
    model = random_weights.fields(**changes)
    tensors = random_weights.tensors(model)
    variables = names.from_torch(tensors, model, 3)
    config = weights.read(write(tmp_path, tensors), **CIFAR).config
    # Neither the place of the stride nor missing shortcuts show in names or shapes.
    found = {**config.model, 'stride_in': model.stride_in, 'plain': model.plain}
    seen = ('family', 'depth', 'num_classes', 'width', 'stride_in', 'plain')
    seen += ('batch_norm',) if model.family == 'vgg' else (
        'shortcut', 'stem_width', 'deep_stem', 'bottleneck', 'bottleneck_width', 'groups')
    assert {field: found[field] for field in seen} == {field: model[field] for field in seen}
    config.model = model
    normalization = {'mean': np.float32([.1, .2, .3]), 'std': np.float32([.4, .5, .6])}
    (tmp_path / 'out.safetensors').write_bytes(
        weights.to_torchvision(weights.Weights(config, variables, normalization, '')))

    out = load_file(tmp_path / 'out.safetensors')
    for name in tensors:
        np.testing.assert_array_equal(out.pop(name), tensors[name])
    # torchvision's normalised VGG has biases that do nothing.
    assert all(re.fullmatch(r'features\.\d+\.bias', n) and not out[n].any() for n in out)

    back = weights.read(tmp_path / 'out.safetensors')
    assert back.config.to_json() == config.to_json()
    for part in normalization:
        np.testing.assert_array_equal(back.normalization[part], normalization[part])
    before, after = (names.to_torch(v, model) for v in (variables, back.variables))
    assert before.keys() == after.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])


def test_prefixes_and_other_names_are_understood(tmp_path):
    cifar = random_weights.tensors(random_weights.fields(family='cifar', depth=8, shortcut='B'))
    named = {'module.' + name.replace('fc.', 'linear.').replace('downsample', 'shortcut'): array
             for name, array in cifar.items()}
    named['module.bn1.num_batches_tracked'] = np.array(7)
    found = weights.read(write(tmp_path, named), **CIFAR)
    assert (found.origin, found.config.model.shortcut) == ('CIFAR', 'B')
    assert found.describe().startswith('ResNet-8, 7 classes, shortcut B: ')

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


def test_cifar_networks_ask_for_their_normalisation(tmp_path):
    path = write(tmp_path, random_weights.tensors(random_weights.fields(family='cifar', depth=8)))
    for given in ({}, {'mean': CIFAR['mean']}, {'std': CIFAR['std']}):
        with pytest.raises(UserError, match=r'--mean=0\.485,.*--mean=0\.4914,') as error:
            weights.read(path, **given)
        assert str(error.value).startswith(f'{path} does not say how its input is normalised;')
    found = weights.read(path, **CIFAR)
    for part, value in CIFAR.items():
        np.testing.assert_array_equal(found.normalization[part], np.float32(value))


def describe(folder, **config):
    (folder / 'config.json').write_text(json.dumps(config))
    return beside.read(folder / 'model.safetensors')


@pytest.mark.parametrize('name', [
    'resnet18', 'resnet152.a1_in1k', 'tv_resnet34', 'gluon_resnet50_v1b', 'vgg16_bn', 'vgg19',
    'resnet50d.ra4_e3600_r224_in1k', 'resnet50c', 'resnext50_32x4d.a1h_in1k', 'ig_resnext101_32x8d',
    'resnext50d_32x4d', 'wide_resnet101_2', 'resnetv2_50.a1h_in1k'])
def test_timms_networks_of_the_paper_are_known(name, tmp_path):
    told = describe(tmp_path, architecture=name, global_pool='avg', num_classes=7,
                    model_args={'num_classes': 7, 'in_chans': 3})
    assert (told.architecture, told.problem) == (name.split('.')[0], None)


@pytest.mark.parametrize(('config', 'problem'), [
    ({'architecture': 'resnetblur18'}, 'blurs where it down-samples'),
    ({'architecture': 'resnetblur50.bt_in1k'}, 'blurs where it down-samples'),
    ({'architecture': 'resnetaa50'}, 'blurs where it down-samples'),
    ({'pretrained_cfg': {'architecture': 'resnetblur18'}}, 'blurs where it down-samples'),
    ({'architecture': 'resnet18x'}, 'is not known to be a network of the paper'),
    ({'architecture': 'resnet18', 'model_args': {'aa_layer': 'blur'}},
     'it modifies by {"aa_layer": "blur"}'),
    ({'architecture': 'resnet18', 'global_pool': 'max'}, 'it modifies by {"global_pool": "max"}'),
    ({'architectures': ['RegNetForImageClassification'], 'model_type': 'regnet'},
     'is not known to be a network of the paper'),
    ({'architectures': ['ResNetForImageClassification'], 'downsample_in_first_stage': True},
     'has downsample_in_first_stage=true'),
    ({'model_type': 'resnet', 'hidden_act': 'gelu'}, 'has hidden_act="gelu"'),
])
def test_other_architectures_are_known_by_their_config(config, problem, tmp_path):
    assert problem in describe(tmp_path, **config).problem


def test_a_blurred_network_is_refused_where_config_json_says_so(tmp_path):
    path = write(tmp_path, random_weights.tensors(random_weights.fields()), 'model.safetensors')
    assert 'resnetblur50' in weights.read(path).describe()  # it cannot be told
    describe(tmp_path, architecture='resnetblur18')
    with pytest.raises(UserError, match='architecture is resnetblur18, which blurs'):
        weights.read(tmp_path)
    describe(tmp_path, architecture='resnet18')
    assert len(weights.read(tmp_path).describe().splitlines()) == 2
    (tmp_path / 'config.json').write_text('[')
    with pytest.raises(UserError, match=r'config\.json, which describes .*, cannot be read'):
        weights.read(tmp_path)


def test_what_tensors_do_not_show_is_printed(tmp_path):
    def last_line(**changes):
        path = write(tmp_path, random_weights.tensors(random_weights.fields(**changes)))
        return weights.read(path, **CIFAR).describe().splitlines()[2:]

    (bottleneck,), (basic,) = last_line(depth=50), last_line(depth=18)
    assert 'stride v1.5' in bottleneck and 'resnetblur50' in bottleneck
    assert 'stride' not in basic and 'resnetblur50' in basic
    (option_a,) = last_line(family='cifar', depth=8, shortcut='A')
    assert 'option A' in option_a
    assert last_line(family='cifar', depth=8, shortcut='B') == []
    assert last_line(family='vgg', depth=16, batch_norm=False, width=2) == []


@pytest.fixture(scope='module')
def bottlenecks():
    """The tensors of a narrow ResNet-50."""
    return random_weights.tensors(random_weights.fields(depth=50))


def tiered_stem(tensors):
    """Three convolutions of 3, 4 and 8 filters, as in timm's resnet50t."""
    weight = tensors.pop('conv1.weight')
    tensors |= {'conv1.0.weight': weight[:3, :, :3, :3], 'conv1.3.weight': weight[:4, :, :3, :3],
                'conv1.6.weight': weight[..., :3, :3]}


def group_norm(tensors):
    for name in [name for name in tensors if 'running' in name]:
        del tensors[name]


@pytest.mark.parametrize(('change', 'problem'), [
    (group_norm, r'normalisation without running statistics.* \(bn1\.weight\)'),
    (lambda t: t.update({'layer1.0.se.fc1.weight': np.ones((1, 1), np.float32)}),
     r'squeeze-and-excitation .*\(layer1\.0\.se\.fc1\.weight\)'),
])
def test_what_makes_a_network_another_is_said_by_the_names_of_the_file(
        change, problem, bottlenecks, tmp_path):
    tensors = dict(bottlenecks)
    change(tensors)
    (tmp_path / 'config.json').write_text('{"architecture": "another50"}')
    with pytest.raises(UserError, match=rf'\(another50\): .* it has {problem}') as error:
        weights.read(write(tmp_path, tensors))
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    (tmp_path / 'config.json').unlink()
    wrapped = {f'module.{name}': array for name, array in tensors.items()}
    with pytest.raises(UserError, match=r'\(module\.'):
        weights.read(write(tmp_path, wrapped))


@pytest.mark.parametrize(('change', 'told'), [
    (lambda t: t.pop('layer2.0.conv1.weight'), '1 missing: layer2.0.conv1.weight'),
    (lambda t: t.update({'extra.weight': np.ones(1, np.float32)}), '1 unknown: extra.weight'),
    (lambda t: t.update({'layer3.1.bn1.bias': np.ones(5, np.float32)}),
     r'1 of another shape: layer3.1.bn1.bias \(5 instead of 32\)'),
    (lambda t: t.update({'conv1.weight': t['conv1.weight'][..., :5, :5]}), 'behind a 5x5'),
    (lambda t: t.pop('fc.weight'), 'do not make a classifier'),
    (tiered_stem, r'of another shape: .*conv1\.3\.weight \(4x3x3x3 instead of 4x4x3x3\)'),
    (lambda t: [t.pop(n) for n in list(t) if 'layer4.1' in n], 'in stages of 2, 2, 2, 1'),
    (lambda t: t.update({'fc.bias': np.ones(7, np.int64)}), 'has the type int64'),
    (lambda t: t.clear() or t.update(a=np.ones(1, np.float32)), 'not those of torchvision'),
])
def test_tensors_that_make_no_network_are_listed(change, told, tmp_path):
    tensors = random_weights.tensors(random_weights.fields())
    change(tensors)
    with pytest.raises(UserError, match=told):
        weights.read(write(tmp_path, tensors))


def test_two_names_of_one_tensor_are_refused(tmp_path):
    tensors = random_weights.tensors(random_weights.fields())
    tensors['linear.weight'] = tensors['fc.weight'] + 1
    with pytest.raises(UserError, match=r'fc\.weight and linear\.weight are names of the same'):
        weights.read(write(tmp_path, tensors))


def test_a_long_list_is_cut_short():
    model = random_weights.fields()
    with pytest.raises(UserError, match=r'102 missing: .*, and 96 more'):
        names.from_torch({}, model, 3)
