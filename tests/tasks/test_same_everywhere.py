"""Masks, pyramids and localizers resume to the same bits, and do not depend on the mesh.

`tests/tasks/detection/test_detection.py` shows the same of boxes alone.
"""

import functools
import json

import jax
import numpy as np
import pytest

from resnet_jax.training import loop
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests import runs
from tests.conftest import ROOT
from tests.distributed.test_processes import Job
from tests.tasks.detection import tiny_mask_detector, tiny_pyramid_detector
from tests.tasks.localization import few_boxes
from tests.training.test_faults import build_once

DETECTORS = {'masks': tiny_mask_detector, 'pyramid': tiny_pyramid_detector}
KINDS = (*DETECTORS, 'localizer')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return few_boxes.write(tmp_path_factory.mktemp('boxes'))


def config_of(kind, folder):
    if kind in DETECTORS:
        return DETECTORS[kind].get_config()
    config = few_boxes.config(folder, num_steps=6)
    config.checkpoint.every_steps = 2
    config.model.virtual_batch_size = 4
    return config


@functools.cache
def of_one_device(kind, folder):
    return runs.in_float64(config_of(kind, folder), 3)


@pytest.mark.slow
@pytest.mark.parametrize(('devices', 'parts'), [(8, 1), (1, 2)])
@pytest.mark.parametrize('kind', KINDS)
def test_eight_devices_and_accumulation_give_the_losses_of_one(kind, devices, parts, folder):
    config = config_of(kind, folder)
    config.mesh.data, config.optimizer.accumulation_steps = devices, parts
    reports, params = runs.in_float64(config, 3)
    expected, expected_params = of_one_device(kind, folder)
    assert len({row['loss'] for row in expected}) == 3
    for found, like in zip(reports, expected, strict=True):
        assert found == pytest.approx(like, rel=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
                 params, expected_params)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_stopped_and_resumed_it_gives_the_same_bits(kind, folder, tmp_path, monkeypatch):
    build_once(monkeypatch, {})
    loop.train(config_of(kind, folder), tmp_path / 'whole')
    runs.stop_at(monkeypatch, 3)
    with pytest.raises(loop.Stopped, match='checkpoint saved at step 3'):
        loop.train(config_of(kind, folder), tmp_path / 'run')
    loop.train(config_of(kind, folder), tmp_path / 'run')
    jax.tree.map(np.testing.assert_array_equal, stored.read(tmp_path / 'run').variables,
                 stored.read(tmp_path / 'whole').variables)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_masks_as_one_does(commands, tmp_path):
    path = ROOT / 'tests' / 'tasks' / 'detection' / 'tiny_pyramid_detector.py'

    def job(workdir, count):
        job = Job(commands, 'resnet_jax.main', f'--config={path}', f'--workdir={workdir}',
                  '--config.mesh.data=8', '--config.num_steps=3', '--config.log.every_steps=1',
                  count=count)
        assert job.wait() == [0] * count, job.errors(0)
        return read_rows(workdir / 'metrics.jsonl')

    one, two = job(tmp_path / 'one', 1), job(tmp_path / 'two', 2)
    assert [row['step'] for row in one] == [row['step'] for row in two]
    for expected, found in zip(one, two, strict=True):
        same = [name for name in expected if name.endswith(('loss', 'ap', 'ap50', 'count'))]
        assert same
        assert {name: found[name] for name in same} == pytest.approx(
            {name: expected[name] for name in same}, rel=1e-3, abs=1e-3)

    job = Job(commands, 'resnet_jax.evaluate', f'--workdir={tmp_path}/two', '--json')
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    values = json.loads(job.output(0).splitlines()[-1])
    trained = next(row for row in two if 'eval/mask_ap' in row)
    assert values['eval/count'] == 8
    for name in ('eval/ap', 'eval/mask_ap', 'eval/mask_ap50'):
        assert values[name] == pytest.approx(trained[name], abs=1e-2)
