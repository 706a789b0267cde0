"""Eight simulated devices for every test, and a tiny config to start from.

Tests of one device make a mesh of the first one.
"""

import os
import pathlib
import sys

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    # Tiny networks take longer to compile than to run.
    ' --xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=1')
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for configs/ and experiments/, which are not installed

import pytest  # noqa: E402

from configs import digits_r20  # noqa: E402


@pytest.fixture
def tiny_config():
    """ResNet-8 of 8 filters on digits; takes a second or two to compile."""
    config = digits_r20.get_config()
    config.model.depth = 8
    config.model.width = 8
    config.batch_size = 64
    config.model.virtual_batch_size = 8
    config.num_steps = 20
    config.mesh.data = 1
    config.schedule.name = 'constant'
    config.schedule.warmup = 'none'
    config.schedule.learning_rate = 0.05
    config.eval.every_steps = 10
    config.checkpoint.every_steps = 5
    config.log.every_steps = 5
    config.compilation_cache = ''
    return config
