"""A user's mistake is one sentence; an error in the code keeps its type and its traceback."""

import traceback

import numpy as np
import pytest

import resnet_jax
from resnet_jax import models, weights
from resnet_jax.data.sources import labelled
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.tasks.classification import inference
from resnet_jax.training import loop
from resnet_jax.weights import names
from tests.weights import random_weights
from tests.weights.networks import images, store
from tests.weights.test_recognition import write


def test_a_bug_in_a_block_keeps_its_traceback(tiny_config, tmp_path, monkeypatch):
    path = write(tmp_path, random_weights.tensors(random_weights.fields()))
    store(tmp_path / 'stored')
    network = resnet_jax.load(tmp_path / 'stored')
    source = labelled(images(4, 32, 32, 3), np.zeros(4, int), 10, 'test')

    def broken(self, x, *, train):
        _batch, _height, width = x.shape[:2]
        return x[:, :, :width]

    monkeypatch.setattr(BasicBlock, '__call__', broken)
    names._shapes.cache_clear()  # another test may have asked for the same network
    for work in (lambda: loop.train(tiny_config, tmp_path / 'run'),
                 lambda: weights.read(path),
                 lambda: inference.predict([network], source, Views('center_crop', 32, 32), 4)):
        with pytest.raises(ValueError, match='not enough values to unpack') as error:
            work()
        assert not isinstance(error.value, UserError)
        assert 'broken' in {frame.name for frame in traceback.extract_tb(error.tb)}


def test_a_wrong_field_is_one_sentence(tiny_config, tmp_path):
    tiny_config.model.depth = 9
    with pytest.raises(UserError) as error:
        loop.train(tiny_config, tmp_path)
    assert str(error.value) == (
        'model.depth must be 6n + 2 for the cifar family (8, 14, 20, …), got 9; the nearest is 8.')
    assert isinstance(error.value.__cause__, models.ConfigError)


def test_images_too_small_for_the_network_are_one_sentence(tmp_path):
    store(tmp_path, family='vgg', depth=16, width=1, batch_norm=False, size=224)
    network = resnet_jax.load(tmp_path)
    source = labelled(images(1, 40, 40, 3), np.zeros(1, int), 10, 'test')
    with pytest.raises(UserError, match='of 40 x 40 pixels: VGG needs images of at least 224'):
        inference.predict([network], source, Views('multi_scale', 40, 40, (40,)), 1)


def test_a_users_mistake_is_not_a_value_error():
    """Code that handles a ValueError must not swallow the sentence."""
    assert not issubclass(UserError, ValueError)
