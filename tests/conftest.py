"""Eight simulated devices for every test, and a tiny config to start from.

Tests of one device make a mesh of the first one. What one test has compiled no other compiles
again, in whichever process.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    # Tiny networks take longer to compile than to run.
    ' --xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=1')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # the workers of pytest-xdist inherit it
    cache = tempfile.mkdtemp(prefix='resnet_jax_tests_')
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for configs/ and experiments/, which are not installed

import pytest  # noqa: E402

from tests import tiny  # noqa: E402


@pytest.fixture
def tiny_config():
    """A config of its own for every test."""
    return tiny.config()
