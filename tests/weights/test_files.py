"""Damaged and hostile files end in one clear sentence; nothing in a file is ever run."""

import json
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from resnet_jax import weights
from resnet_jax.errors import UserError
from resnet_jax.weights import caffe
from tests.weights import random_weights


class WritesAFile:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.write_text, (self.path, 'owned')


def refuse(path, data, told='damaged|missing|no tensors|not a Caffe model|refused'):
    """Whatever is wrong, the user is told, and nothing else is raised."""
    path.write_bytes(data)
    with pytest.raises(UserError, match=told):
        weights.read(path)


@pytest.mark.parametrize('suffix', ['.pth', '.th', '.pt', '.bin'])
def test_a_hostile_pickle_is_refused_and_not_run(suffix, tmp_path):
    torch = pytest.importorskip('torch', reason='writing them needs PyTorch')
    proof = tmp_path / 'proof'
    hostile = {'conv1.weight': torch.ones(1), 'x': WritesAFile(proof)}
    for legacy in (False, True):
        torch.save(hostile, tmp_path / 'zip', _use_new_zipfile_serialization=not legacy)
        refuse(tmp_path / f'weights{suffix}', (tmp_path / 'zip').read_bytes(), 'is refused')
    refuse(tmp_path / f'weights{suffix}', pickle.dumps(hostile), 'is refused')
    assert not proof.exists()
    pickle.loads(pickle.dumps(WritesAFile(proof)))  # it would have written the file
    assert proof.exists()


def test_a_pickle_cut_short_is_told(tmp_path):
    torch = pytest.importorskip('torch', reason='writing them needs PyTorch')
    torch.save({'a': torch.ones(10_000)}, tmp_path / 'whole')
    data = (tmp_path / 'whole').read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        refuse(tmp_path / 'weights.pth', data[:length])
    for content in ([1, 2], {'a': 1}, torch.ones(3)):
        torch.save(content, tmp_path / 'weights.pth')
        with pytest.raises(UserError, match=r'instead of a state dict|no tensors'):
            weights.read(tmp_path / 'weights.pth')


def test_safetensors_cut_short_or_with_wrong_lengths_are_told(tmp_path):
    data = save(random_weights.tensors(random_weights.fields(family='cifar', depth=8)))
    path = tmp_path / 'weights.safetensors'
    for length in (*range(40), 1000, len(data) // 2, len(data) - 4, len(data) - 1):
        refuse(path, data[:length])
    size = struct.unpack('<Q', data[:8])[0]
    for wrong in (0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1):
        refuse(path, struct.pack('<Q', wrong) + data[8:])
    header = json.loads(data[8:8 + size])
    for offsets in ([0, 2**40], [8, 4], [-1, 4], [0, 3]):
        header['conv1.weight']['data_offsets'] = offsets
        text = json.dumps(header).encode()
        refuse(path, struct.pack('<Q', len(text)) + text + data[8 + size:])


def test_damaged_settings_are_told(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(family='cifar', depth=8))
    good = {'model': {}, 'mean': [0, 0, 0], 'std': [1, 1, 1], 'image_size': [32, 32]}
    for change in ({'model': {'depth': 'x'}}, {'mean': 'x'}, {'std': [0, 1, 1]}, {'std': [1]},
                   {'image_size': 3}, {'model': 3}, {'model': {'num_classes': 3}},
                   {'model': {'family': 'x'}}):
        (tmp_path / 'w.safetensors').write_bytes(
            save(tensors, {weights.SETTINGS_KEY: json.dumps(good | change)}))
        with pytest.raises(UserError):
            weights.read(tmp_path / 'w.safetensors')
    (tmp_path / 'w.safetensors').write_bytes(save(tensors, {weights.SETTINGS_KEY: '{'}))
    with pytest.raises(UserError, match='settings in its metadata are damaged'):
        weights.read(tmp_path / 'w.safetensors')


@pytest.fixture(scope='module')
def caffemodel():
    return random_weights.caffemodel(random_weights.tensors(random_weights.fields(width=2)))


def test_a_caffemodel_cut_short_is_told(caffemodel, tmp_path):
    rng = np.random.default_rng(0)
    lengths = [0, 1, 2, 5, *rng.integers(6, len(caffemodel), 60), len(caffemodel) - 1]
    for length in lengths:
        refuse(tmp_path / 'weights.caffemodel', caffemodel[:length], r'\.')


@pytest.mark.slow
def test_a_caffemodel_with_wrong_lengths_or_bytes_is_told_or_read(caffemodel, tmp_path):
    net = caffe.message_class('NetParameter').FromString(caffemodel)
    path = tmp_path / 'weights.caffemodel'
    for layer in (1, 2, 3, len(net.layer) - 1):
        changed = caffe.message_class('NetParameter').FromString(caffemodel)
        changed.layer[layer].blobs[0].shape.dim[0] += 1
        refuse(path, changed.SerializeToString(), 'declares .* but holds .* numbers')
        changed.layer[layer].blobs[0].shape.dim[0] = -2**62
        refuse(path, changed.SerializeToString(), 'declares .* but holds .* numbers')
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(caffemodel)
        for position in rng.integers(len(data), size=20):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            weights.read(path)  # numbers may change without anyone noticing
        except UserError:
            continue
    refuse(path, os.urandom(5000), r'\.')
    refuse(path, caffe.message_class('NetParameter')(name='empty').SerializeToString(),
           'lacks the layer conv1')


@pytest.mark.parametrize(('wrong', 'count'), [(np.nan, 1), (np.inf, 2)])
def test_numbers_that_are_not_finite_are_refused_by_the_names_of_the_file(wrong, count, tmp_path):
    tensors = random_weights.tensors(random_weights.fields(width=2))
    named = {f'module.{name}': array for name, array in tensors.items()}
    broken = ['module.layer2.0.conv1.weight', 'module.fc.bias'][:count]
    for name in broken:
        named[name].flat[1] = wrong
    refuse(tmp_path / 'w.safetensors', save(named), f'NaN or infinity in .*{broken[-1]}')
    torch = pytest.importorskip('torch', reason='writing them needs PyTorch')
    torch.save({name: torch.from_numpy(array) for name, array in named.items()}, tmp_path / 'w')
    refuse(tmp_path / 'w.pth', (tmp_path / 'w').read_bytes(), f'infinity in .*{broken[-1]}')


def test_a_variance_below_0_is_refused(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(width=2))
    tensors['layer2.0.bn1.running_var'][1] = -1e-3
    refuse(tmp_path / 'w.safetensors', save(tensors),
           r'contains a variance below 0 in layer2\.0\.bn1\.running_var')


def test_images_of_four_channels_are_refused(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(width=2))
    tensors['conv1.weight'] = np.zeros((2, 4, 7, 7), np.float32)
    refuse(tmp_path / 'w.safetensors', save(tensors), 'takes images of 4 channels')


def test_a_caffemodel_with_nan_is_refused_by_the_name_of_its_layer(tmp_path):
    tensors = random_weights.tensors(random_weights.fields(width=2))
    tensors['layer1.0.conv2.weight'][0] = np.nan
    refuse(tmp_path / 'w.caffemodel', random_weights.caffemodel(tensors),
           r'NaN or infinity in res2a_branch2b \(weight\)')


def test_a_published_cifar_network_needs_its_mean_and_std():
    pytest.importorskip('torch', reason='writing them needs PyTorch')
    root = os.environ.get('RESNET_JAX_TEST_DATA')
    if not root:
        pytest.skip('RESNET_JAX_TEST_DATA is not set to the folder of the real data')
    path = pathlib.Path(root) / 'cifar10_resnet20_torch.th'
    with pytest.raises(UserError, match='pass --mean and --std'):
        weights.read(path)
    found = weights.read(path, mean=(.485, .456, .406), std=(.229, .224, .225))
    assert found.describe().startswith(
        'ResNet-20, 10 classes, shortcut A: 269,722 parameters, from the names of '
        'CIFAR\ninput: RGB in [0, 1], less 0.485 0.456 0.406, divided by 0.229 0.224 0.225\n')


def test_a_folder_with_a_pytorch_model_is_read(tmp_path):
    torch = pytest.importorskip('torch', reason='writing them needs PyTorch')
    tensors = random_weights.tensors(random_weights.fields(width=2))
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()},
               tmp_path / 'pytorch_model.bin')
    torch.save({'lr': torch.ones(1)}, tmp_path / 'training_args.bin')
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'resnet18', 'pretrained_cfg': {'mean': [.5, .4, .3], 'std': [.1, .1, .2]}}))
    found = weights.read(tmp_path)
    np.testing.assert_array_equal(found.normalization['mean'], np.float32([.5, .4, .3]))
    np.testing.assert_array_equal(
        found.variables['params']['head']['bias'], tensors['fc.bias'])


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match='there is no file or folder'):
        weights.read(tmp_path / 'nothing.pth')
    with pytest.raises(UserError, match='holds no file of weights'):
        weights.read(tmp_path)
    refuse(tmp_path / 'weights.h5', b'x', r'must end in \.safetensors')
    for name in ('a.pth', 'b.safetensors'):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r'several files of weights: name one of a\.pth, b\.'):
        weights.read(tmp_path)
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(UserError, match='does not need to be converted'):
        weights.read(tmp_path / 'run')
