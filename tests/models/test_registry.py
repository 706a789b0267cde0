"""A family of networks needs a registration and nothing else; networks have names."""

import doctest

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import registry
from resnet_jax.training import loop
from resnet_jax.training.costs import summarize
from resnet_jax.weights import stored, to_torchvision


@pytest.fixture
def toy_config(tiny_config):
    tiny_config.model.update(family='tests.models.toy', depth=1)
    tiny_config.num_steps = 2
    tiny_config.eval.every_steps = tiny_config.checkpoint.every_steps = None
    return tiny_config


def test_a_family_that_only_the_tests_know_is_summarised_trained_and_loaded(
        toy_config, tmp_path, capsys):
    summary = summarize(toy_config)
    assert summary['stages'] == [{'name': 'grid', 'shape': [2, 2, 8]},
                                 {'name': 'head', 'shape': [10]}]
    assert summary['parameters'] == 9 * 8 + 8 + 8 * 10 + 10
    assert summary['multiply_adds'] == 2 * 2 * 9 * 8 + 8 * 10

    values = loop.train(toy_config, tmp_path)
    assert values['eval/count'] == 297
    assert 'Toy-1: 170 parameters; ' in capsys.readouterr().out
    network = resnet_jax.load(tmp_path)
    assert repr(network).startswith('Classifier(Toy-1, 10 classes, ')
    assert network.stages == ('grid', 'pool')
    maps = network.features(np.zeros((3, 8, 8, 1), np.uint8))
    assert {stage: maps[stage].shape for stage in maps} == {'grid': (3, 2, 2, 8), 'pool': (3, 8)}

    with pytest.raises(UserError, match=r'family tests\.models\.toy cannot be converted'):
        to_torchvision(stored.read(tmp_path))
    toy_config.eval.recalibrate_batches = 1
    with pytest.raises(UserError, match='must be 0 for a network without batch normalisation'):
        loop.train(toy_config, tmp_path / 'again')


@pytest.mark.parametrize(('name', 'blocks', 'fields'), [
    ('resnet18', (2, 2, 2, 2), {'width': 64, 'shortcut': 'B', 'num_classes': 1000}),
    ('plain34', (3, 4, 6, 3), {'plain': True, 'stem_kind': 'imagenet'}),
    ('resnet50', (3, 4, 6, 3), {'stride_in': 'v1', 'stem_kind': 'imagenet'}),
    ('resnet1202', (200, 200, 200), {'width': 16, 'shortcut': 'A', 'num_classes': 10}),
    ('plain8', (1, 1, 1), {'plain': True, 'stem_kind': 'cifar'}),
    ('resnet34d', (3, 4, 6, 3), {'deep_stem': True, 'shortcut': 'D', 'stride_in': 'v1.5'}),
    ('resnext101_32x8d', (3, 4, 23, 3), {'groups': 32, 'bottleneck_width': 256}),
    ('wide_resnet50_2', (3, 4, 6, 3), {'groups': 1, 'bottleneck_width': 128}),
    ('resnetv2_50', (3, 4, 6, 3), {'shortcut': 'B', 'stem_kind': 'imagenet', 'width': 64}),
    ('resnetv2_110', (18, 18, 18), {'shortcut': 'A', 'stem_kind': 'cifar', 'width': 16}),
    ('resnetv2_1001', (111, 111, 111), {'shortcut': 'B', 'num_classes': 10}),
    ('vgg19', (2, 2, 4, 4, 4), {'batch_norm': False}),
    ('vgg16_bn', (2, 2, 3, 3, 3), {'batch_norm': True}),
])
def test_networks_are_made_by_name_with_the_papers_fields(name, blocks, fields):
    network = resnet_jax.create(name)
    assert network.stage_sizes == blocks
    assert {field: getattr(network, field) for field in fields} == fields
    assert resnet_jax.create(name, num_classes=3, width=2) == network.clone(num_classes=3, width=2)


def test_every_name_that_is_suggested_is_one():
    own = [family for name, family in registry._FAMILIES.items() if not name.startswith('tests.')]
    for family in own:
        assert family.names and all(family.named(name) is not None for name in family.names)


@pytest.mark.parametrize(('name', 'nearest'), [
    ('resnet51', 'resnet50'), ('ResNet50', 'resnet50'), ('vgg17', 'vgg16'), ('plain9', 'plain'),
    ('resnext18_32x4d', 'resnext50_32x4d'), ('wide_resnet50', 'wide_resnet50_2'),
    ('resnext50', 'resnext50_32x4d'),
    ('hf:timm/resnet50.a1_in1k', r'resnet50, .*resnet_jax\.load\(.hf:timm'),
    ('resnet50.a1_in1k', r'resnet50, .*resnet_jax\.load\(.hf:timm')])
def test_a_name_that_is_not_there_is_one_sentence_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"^there is no network '{name}'; .*{nearest}.*\\.$"):
        resnet_jax.create(name)


def test_the_example_of_create_is_true():
    test = doctest.DocTestFinder().find(
        resnet_jax.create, globs={'resnet_jax': resnet_jax, 'np': np, 'jax': jax})
    assert len(test) == 1 and test[0].examples
    assert doctest.DocTestRunner().run(test[0]).failed == 0


def test_a_family_that_is_not_there_is_one_sentence(tiny_config):
    for name in ('resnext', 'no_such.network', 'tests.models.test_relu', '.toy', None):
        tiny_config.model.family = name
        with pytest.raises(models.ConfigError, match='must be one of imagenet, cifar, '):
            models.create(tiny_config.model)
