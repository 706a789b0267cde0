"""The trained ResNet-50 of half the width is read from its file and computes what the file says."""

import io
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from resnet_jax import models, weights
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.weights import names
from tests.weights import half_width, random_weights

FILE = 'resnet50_half_width_open_nsfw.npz'


@pytest.fixture(scope='module')
def real_data():
    root = os.environ.get('RESNET_JAX_TEST_DATA')
    if not root:
        pytest.skip('RESNET_JAX_TEST_DATA is not set to the folder of the real data')
    return pathlib.Path(root)


def folded(**changes):
    """Random tensors whose variances are folded into the scales."""
    model = random_weights.fields(**{'depth': 50, 'width': 2, 'stem_width': 4, 'num_classes': 3,
                                     **changes})
    tensors = random_weights.tensors(model)
    return {name: np.ones_like(array) if name.endswith('running_var') else array
            for name, array in tensors.items()}


def write(folder, tensors):
    np.savez(folder / 'w.npz', **tensors)
    return folder / 'w.npz'


@pytest.mark.slow
def test_its_features_equal_those_of_a_plain_numpy_pass_of_the_file(real_data):
    found = weights.read(real_data / FILE)
    found.config.model.unroll = False  # compiles sooner
    network = Classifier(found.config, found.variables, found.normalization, ())
    with np.load(real_data / FILE) as file:
        tensors = dict(file)
    with tarfile.open(real_data / 'imagenette_4k.tar') as tar:
        files = sorted(name for name in tar.getnames() if '/val/' in name and 'JPEG' in name)
        images = np.stack([
            PIL.Image.open(io.BytesIO(tar.extractfile(files[i]).read())).convert('RGB')
            for i in (0, 700)])
    assert images.shape == (2, 224, 224, 3)
    for stage, theirs in half_width.features(tensors, images).items():
        ours = network.features(images, stage)
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5, stage
    assert theirs.shape == (2, 1024)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_it_is_known_by_its_widths_and_its_two_classes(tmp_path):
    tensors = folded(width=32, stem_width=64, num_classes=2)
    found = weights.read(write(tmp_path, tensors))
    fields = found.config.model
    assert (fields.depth, fields.width, fields.stem_width) == (50, 32, 64)
    assert (fields.stride_in, fields.pool_pad, fields.bn_epsilon) == ('v1', 'end', 0)
    assert 'Open-NSFW' in found.describe() and '5,904,578 parameters' in found.describe()
    # Images in RGB: the file has blue first.
    out = names.to_torch(found.variables, fields)
    np.testing.assert_array_equal(out.pop('conv1.weight'), tensors['conv1.weight'][:, ::-1])
    for name, array in out.items():
        np.testing.assert_array_equal(array, tensors[name])
    np.testing.assert_allclose(found.normalization['mean'] * 255, [123, 117, 104], rtol=1e-6)
    np.testing.assert_allclose(found.normalization['std'] * 255, 1, rtol=1e-6)
    # What `to_torchvision` writes has red first already.
    (tmp_path / 'out.safetensors').write_bytes(weights.to_torchvision(found))
    back = weights.read(tmp_path / 'out.safetensors')
    assert back.config.to_json() == found.config.to_json() and not back.assumed
    np.testing.assert_array_equal(back.variables['params']['stem']['conv']['kernel'],
                                  found.variables['params']['stem']['conv']['kernel'])


def test_other_folded_networks_have_no_epsilon_and_the_usual_images(tmp_path):
    found = weights.read(write(tmp_path, folded()))
    fields = found.config.model
    assert (fields.width, fields.stem_width, fields.bn_epsilon) == (2, 4, 0)
    assert (fields.stride_in, fields.pool_pad) == ('v1.5', 'both')
    np.testing.assert_allclose(found.normalization['mean'], [.485, .456, .406], rtol=1e-6)
    # One that was never trained has variances of 1 and means of 0.
    fresh = {name: np.zeros_like(array) if name.endswith('running_mean') else array
             for name, array in folded().items()}
    assert weights.read(write(tmp_path, fresh)).config.model.bn_epsilon == 1e-5


@pytest.mark.parametrize(('depth', 'stem_width', 'shortcut'), [(50, 3, 'B'), (18, 16, 'B'),
                                                               (18, 4, 'A')])
def test_a_stem_of_another_width_is_recognised(depth, stem_width, shortcut, tmp_path):
    model = random_weights.fields(depth=depth, width=8, stem_width=stem_width, shortcut=shortcut)
    fields = weights.read(write(tmp_path, random_weights.tensors(model))).config.model
    assert (fields.width, fields.stem_width) == (8, stem_width)
    assert (fields.depth, fields.shortcut) == (depth, shortcut)


@pytest.mark.parametrize(('stem_width', 'told'), [(0, 'at least 1'), (9, 'at most 8, .* option A')])
def test_widths_that_no_stem_can_have_are_named(stem_width, told):
    with pytest.raises(models.ConfigError, match=rf'model\.stem_width must be {told}'):
        models.create(random_weights.fields(stem_width=stem_width, shortcut='A'))


def test_a_npz_file_that_is_damaged_or_holds_objects_is_refused(tmp_path):
    data = write(tmp_path, folded()).read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / 'w.npz').write_bytes(data[:length])
        with pytest.raises(UserError, match='is damaged or truncated'):
            weights.read(tmp_path / 'w.npz')
    np.savez(tmp_path / 'w.npz', a=np.array([{}], object))
    with pytest.raises(UserError, match='holds Python objects'):
        weights.read(tmp_path / 'w.npz')
    with zipfile.ZipFile(tmp_path / 'w.npz', 'w') as file:
        file.writestr('a.txt', 'text')
    with pytest.raises(UserError, match=r'a\.txt has the type'):
        weights.read(tmp_path / 'w.npz')
