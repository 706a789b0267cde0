"""Crops of an evaluation, against torchvision's and timm's on real photographs."""

import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax.data import transforms
from resnet_jax.data.types import Item
from resnet_jax.data.views import Views

DATA = os.environ.get('RESNET_JAX_TEST_DATA', '')
PHOTOGRAPHS = pathlib.Path(DATA) / 'imagenet_samples_200.tar'
needs_photographs = pytest.mark.skipif(
    not DATA or not PHOTOGRAPHS.exists(),
    reason='RESNET_JAX_TEST_DATA must name a folder with imagenet_samples_200.tar')


def photographs(every):
    with tarfile.open(PHOTOGRAPHS) as tar:
        members = [member for member in tar if member.isfile()]
        for member in members[::every]:
            data = tar.extractfile(member).read()
            yield data, Image.open(io.BytesIO(data)).convert('RGB')


def torchvisions(config):
    """The preset of torchvision's ResNets: `ImageClassification` with these sizes."""
    from torchvision import transforms as tv
    assert config.eval_filter == 'bilinear'
    return tv.Compose([tv.Resize(config.eval_resize), tv.CenterCrop(config.image_size)])


def timms(config):
    from timm.data import create_transform
    return create_transform(config.eval_size, interpolation=config.eval_filter,
                            crop_pct=config.eval_crop_share, use_prefetcher=True)


def fields(**changed):
    config = config_lib.default().data
    config.update(image_size=224, **changed)
    return config


CASES = {
    'torchvision': (torchvisions, {'eval_resize': 256}),
    'torchvision, second weights': (torchvisions, {'eval_resize': 232}),
    'timm, bilinear': (timms, {'eval_size': 224, 'eval_crop_share': 0.875}),
    'timm, A3': (timms, {'eval_size': 224, 'eval_crop_share': 0.95, 'eval_filter': 'bicubic'}),
    'timm, 288': (timms, {'eval_size': 288, 'eval_crop_share': 1.0, 'eval_filter': 'bicubic'}),
}


@needs_photographs
@pytest.mark.parametrize('case', CASES)
def test_crops_are_those_of_the_published_evaluation(case):
    """The median is over the pixels of a photograph."""
    pytest.importorskip('torchvision')
    make, changed = CASES[case]
    if make is timms:
        pytest.importorskip('timm')
    data = fields(**changed)
    reference, config = make(data), config_lib.default()
    config.data = data
    transform, medians, means = transforms.eval_transform(config), [], []
    for encoded, image in photographs(every=8):
        wanted = np.asarray(reference(image)).astype(int)
        if wanted.shape[0] == 3:
            wanted = wanted.transpose(1, 2, 0)
        got = transform.pixels(Item(encoded, {}, 'photograph'))
        assert got.shape == wanted.shape
        difference = np.abs(got - wanted)
        medians.append(np.median(difference))
        means.append(difference.mean())
    assert len(medians) == 25
    assert max(medians) == 0 and max(means) < 0.4


@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic'])
def test_filters_are_pillows(kernel):
    # Not as far as black and white, where the order of the two directions matters.
    pixels = np.random.default_rng(0).integers(80, 176, (60, 50, 3), np.uint8)
    for size in ((20, 15), (90, 70)):
        item = Item(pixels, {}, 'noise')
        got = transforms.EvalTransform(size, kernel=kernel).pixels(item)
        height, width = max(size[0], size[1] * 60 // 50), max(size[1], size[0] * 50 // 60)
        whole = np.asarray(Image.fromarray(pixels).resize(
            (width, height), Image.Resampling[kernel.upper()]))
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
        wanted = whole[top:top + size[0], left:left + size[1]].astype(int)
        assert np.abs(got - wanted).max() <= 1


def test_the_crop_and_the_filter_are_said_in_words():
    assert Views('center_crop', 224, 235, (), 'bicubic').words == (
        'central crop of 224 from 235, bicubic')
    assert Views('ten_crop', (96, 128), 128).words == '10 crops of 96 x 128 from 128, bilinear'
    assert Views('multi_scale', 224, 256, (224, 480)).words == 'whole images at 224, 480, bilinear'


def test_what_caches_know_of_a_bilinear_crop_is_as_before():
    assert transforms.EvalTransform(224, 256).key == (224, 256)
    assert transforms.EvalTransform(224, 256, kernel='bicubic').key == (224, 256, 'bicubic')
