"""Parameters and multiply-adds of the networks: those of the paper, and those in the README."""

import functools
import json
import pathlib
import re
import runpy

import pytest
from ml_collections import ConfigDict

from resnet_jax.training.costs import summarize
from tests.test_readme import ROWS

ROOT = pathlib.Path(__file__).parent.parent
VALUES = {'false': False, '34': 34, '19': 19, '64': 64}  # in the README


def summary(name, **fields):
    """Of the network of configs/NAME.py, with other fields of its model."""
    config = runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
    config.model.update(fields, unroll=False)  # the same numbers, sooner
    return _summary(config.to_json())


@functools.cache
def _summary(config):
    return summarize(ConfigDict(json.loads(config)))


PAPER = {  # parameters and multiply-adds of shared/paper.md
    'imagenet_r18': (11_689_512, 1.814e9), 'imagenet_r34': (21_797_672, 3.664e9),
    'imagenet_r50': (25_557_032, 3.858e9), 'imagenet_r101': (44_549_160, 7.570e9),
    'imagenet_r152': (60_192_808, 11.282e9),
    'cifar10_r20': (269_722, 40.55e6), 'cifar10_r32': (464_154, None),
    'cifar10_r44': (658_586, None), 'cifar10_r56': (853_018, 125.5e6),
    'cifar10_r110': (1_727_962, 252.9e6), 'cifar10_r1202': (19_421_274, 2.83e9),
}


@pytest.mark.parametrize('name', PAPER)
def test_parameters_and_multiply_adds_are_those_of_the_paper(name):
    found = summary(name, shortcut='A' if name.startswith('cifar') else 'B')
    parameters, multiply_adds = PAPER[name]
    assert found['parameters'] == parameters
    if multiply_adds:
        assert abs(found['multiply_adds'] / multiply_adds - 1) < 0.005
    assert found['memory']['parameters'] == 4 * parameters
    assert found['memory']['optimizer_state'] == 4 * parameters


@pytest.mark.parametrize(('name', 'multiply_adds'), [
    ('imagenet_r50', 4.089e9), ('imagenet_r101', 7.801e9), ('imagenet_r152', 11.514e9)])
def test_multiply_adds_of_v15(name, multiply_adds):
    found = summary(name, stride_in='v1.5')
    assert abs(found['multiply_adds'] / multiply_adds - 1) < 0.005
    assert [tuple(stage['shape']) for stage in found['stages']] == [
        (56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (1000,)]


def test_vgg_19_has_the_parameters_and_multiply_adds_of_the_paper():
    found = summary('imagenet_vgg16', depth=19, batch_norm=False)
    assert found['parameters'] == 143_667_240
    assert abs(found['multiply_adds'] / 19.63e9 - 1) < 0.005


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_the_table_of_the_readme_is_what_summary_prints(row):
    _, path, overrides, parameters, multiply_adds = row
    fields = re.findall(r'`model\.(\w+)=([\w.]+)`', overrides)
    assert len(fields) == overrides.count('=')
    found = summary(pathlib.Path(path).stem, **{
        field: VALUES.get(value, value) for field, value in fields})
    assert f'{found["parameters"]:,}' == parameters
    assert f'{found["multiply_adds"]:,}' == multiply_adds
