"""Presets of compiler options."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from resnet_jax.xla import flags as xla_flags

TOPOLOGY = '''
from jax.experimental import topologies
print(len(topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices))
'''


def start(code, **environment):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environment}
    return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True,
                          text=True)


def texts(variable):
    return [flag.text for preset in xla_flags.PRESETS.values() if preset.variable == variable
            for flag in preset.flags]


def test_every_flag_has_a_reason_and_a_measured_effect():
    for preset in xla_flags.PRESETS.values():
        for flag in preset.flags:
            assert flag.text.startswith('--xla') and flag.reason and flag.effect


def test_no_preset_leaves_the_environment_as_it_is():
    environment = {'XLA_FLAGS': '--a=1'}
    xla_flags.use('none', environment)
    assert environment == {'XLA_FLAGS': '--a=1'}


@pytest.mark.parametrize(('jaxlib', 'count'), [('0.10.2', 1), ('0.11.0', 0), ('1.0.1', 0)])
def test_a_flag_is_given_only_to_versions_that_need_it(jaxlib, count, monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'version', {'jaxlib': jaxlib}.get)
    environment = {}
    xla_flags.use('cpu', environment)
    assert environment.get('XLA_FLAGS', '').count('ynn_fusion_type') == count


def test_flags_of_the_user_win_over_the_preset():
    environment = {'XLA_FLAGS': '--xla_gpu_enable_latency_hiding_scheduler=false'}
    xla_flags.use('gpu', environment)
    assert environment['XLA_FLAGS'].split() == [
        *(flag.text for flag in xla_flags.PRESETS['gpu'].flags),
        '--xla_gpu_enable_latency_hiding_scheduler=false']


def test_xla_knows_the_flags_of_all_presets_and_takes_the_last_of_two():
    count = '--xla_force_host_platform_device_count'
    process = start('import jax; print(jax.device_count())', XLA_FLAGS=' '.join(
        [*texts('XLA_FLAGS'), f'{count}=2', f'{count}=3']))
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == '3'


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
def test_libtpu_knows_the_flags_of_all_presets():
    process = start(TOPOLOGY, LIBTPU_INIT_ARGS=' '.join(texts('LIBTPU_INIT_ARGS')),
                    ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1')
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == '4'
