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

from tests import tiny  # noqa: E402


@pytest.fixture
def tiny_config():
    """A config of its own for every test."""
    return tiny.config()
