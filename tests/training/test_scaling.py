"""Predicted images per second, from a report of numbers that are easy to follow."""

import importlib.util
import json

import pytest

from configs import coco_r50_fpn
from experiments import charts
from experiments import scaling as drawing
from resnet_jax.errors import UserError
from resnet_jax.training import compiled, scaling
from resnet_jax.xla import topologies
from tests import tiny
from tests.tasks.detection import tiny_detector

# 16 chips of v5e with 128 images each: 2 ms of arithmetic, 10 ms of memory; 100 MB of gradients.
PARAMETERS = 25_000_000
FIXED = 32 * PARAMETERS / 819e9  # seconds
BASE = {'topology': 'v5e:4x4', 'devices': 16, 'parameters': PARAMETERS, 'notes': [],
        'flops': 16 * 2e-3 * 197e12, 'bytes': 16 * 10e-3 * 819e9, 'fits': True, 'memory': {},
        'collectives': {'all-reduce': {'count': 2, 'bytes': 4 * PARAMETERS}}}


# The step of configs/coco_r50_fpn.py with 4 images per chip: 149.6 ms of memory.
DETECTOR = BASE | {'parameters': 41_755_286, 'flops': 16 * 40e-3 * 197e12,
                   'bytes': 16 * 149.6e-3 * 819e9,
                   'collectives': {'all-reduce': {'count': 2, 'bytes': 4 * 41_500_000}}}


def swept(monkeypatch, config, base, names):
    """A sweep that takes the report for one of the step of the config."""
    def report(given, topology):
        assert (given, topology.name) == (config, base['topology'])
        return base

    monkeypatch.setattr(compiled, 'report', report)
    monkeypatch.setattr(topologies, 'create', topologies.describe)
    return scaling.sweep(config, scaling.expand(names))


@pytest.fixture
def result(monkeypatch):
    config = tiny.config()
    config.batch_size = 2048
    return swept(monkeypatch, config, BASE, ['v5e:4x4', '16x16'])


def test_weak_scaling_adds_only_the_all_reduce(result):
    small, large = (row for row in result['points'] if row['scaling'] == 'weak')
    assert (small['batch_size'], large['batch_size']) == (2048, 32768)
    assert small['memory_seconds'] == large['memory_seconds'] == pytest.approx(10e-3)
    # Two open lines of 4 chips, and two rings of 16.
    assert small['communication_seconds'] == pytest.approx(2 * 15 / 16 * 1e8 / 90e9)
    assert large['communication_seconds'] == pytest.approx(2 * 255 / 256 * 1e8 / 180e9)
    assert large['images_per_second'] == pytest.approx(32768 / (10e-3 + 1.107e-3), rel=1e-3)
    assert small['efficiency'] == pytest.approx(10 / (10 + 2.083), rel=1e-3)
    assert large['efficiency'] == pytest.approx(10 / (10 + 1.107), rel=1e-3)
    assert large['efficiency_overlapped'] == 1
    assert small['bound'] == large['bound'] == 'memory'


def test_strong_scaling_shares_the_images_out_but_not_the_parameters(result):
    small, large = (row for row in result['points'] if row['scaling'] == 'strong')
    assert small['batch_size'] == large['batch_size'] == 2048
    assert large['images_per_device'] == 8
    assert large['flop_seconds'] == pytest.approx(2e-3 / 16)
    assert large['memory_seconds'] == pytest.approx((10e-3 - FIXED) / 16 + FIXED)
    assert large['efficiency'] < 0.5 and large['bound'] == 'memory'


def test_the_table_names_what_bounds_each_point(result):
    lines = scaling.table(result).splitlines()
    assert lines[2].split() == ['weak', 'v5e:16x16', '256', '32,768', '128', '10.00', 'ms',
                                '1.11', 'ms', '2,950,272', '90%', 'to', '100%', 'memory']


def test_a_detector_has_strong_scaling_down_to_one_image_per_chip(monkeypatch, tmp_path):
    config = coco_r50_fpn.get_config()
    config.batch_size = 64
    result = swept(monkeypatch, config, DETECTOR, ['v5e:4x4', '8x8', '16x16'])
    assert [(row['scaling'], row['devices'], row['batch_size'], row['images_per_device'])
            for row in result['points']] == [
        ('weak', 16, 64, 4), ('weak', 64, 256, 4), ('weak', 256, 1024, 4),
        ('strong', 16, 64, 4), ('strong', 64, 64, 1)]
    # Weak on 256 chips: 149.6 ms, and 166 MB over two rings of 16, 1.84 ms.
    assert result['points'][2]['images_per_second'] == pytest.approx(1024 / 151.44e-3, rel=1e-4)
    lines = scaling.table(result).splitlines()
    assert lines[3].split()[:7] == ['weak', 'v5e:16x16', '256', '1,024', '4', '149.60', 'ms']
    assert lines[-1].startswith('note: v5e:16x16 has no strong scaling')

    file = tmp_path / 'coco.json'
    file.write_text(json.dumps(result))
    charts.save_one(drawing.chart(drawing.read(file)), tmp_path / 'coco.svg')
    assert '>coco<' in (tmp_path / 'coco.svg').read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_a_detector_is_compiled_and_its_scaling_predicted():
    config = tiny_detector.get_config()
    config.mesh.data, config.model.virtual_batch_size = -1, 2
    result = scaling.sweep(config, ['v5e:2x2', 'v5e:4x4'])
    assert result['base']['fits'] and result['left_out'] == ['v5e:4x4']
    assert result['base']['collectives']['all-reduce']['count'] <= 2
    assert [(row['scaling'], row['batch_size']) for row in result['points']] == [
        ('weak', 8), ('weak', 32), ('strong', 8)]
    assert all(0 < row['efficiency'] <= row['efficiency_overlapped'] <= 1
               for row in result['points'])


def test_the_topology_that_is_compiled_for_is_a_single_slice():
    with pytest.raises(UserError, match=r'put v5e:2\*4x4 behind another one'):
        scaling.sweep(tiny.config(), ['v5e:2*4x4', 'v5e:4x4'])


def test_simulated_devices_have_no_peak_to_predict_from():
    with pytest.raises(UserError, match='cpu:8, whose peak is not known'):
        scaling.sweep(tiny.config(), ['cpu:8'])


def test_names_of_a_sweep_are_completed_and_quoted_as_they_were_given():
    assert scaling.expand(['v5e:4x4', '8x8', '2*16x16', 'h100:16']) == [
        'v5e:4x4', 'v5e:8x8', 'v5e:2*16x16', 'h100:16']
    for names, sentence in ((['v5e:4x4', '8X8'], "got '8X8'"), (['4x4'], "got '4x4'"),
                            (['v5e:4x4', 'v5e-64'], 'topology v5e-64 is written v5e:8x8')):
        with pytest.raises(UserError, match=sentence):
            scaling.expand(names)
