"""Eight simulated devices for every test, and a tiny config to start from.

Tests of one device make a mesh of the first one. What one test has compiled no other compiles
again, in whichever process.
"""

import atexit
import gc
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile

gc.disable()  # while modules are imported

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for configs/ and experiments/, which are not installed

from tests import xla_options  # noqa: E402

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {xla_options.quick(devices=8)}'
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # the workers of pytest-xdist inherit it
    cache = tempfile.mkdtemp(prefix='resnet_jax_tests_')
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests import tiny  # noqa: E402
from tests.commands import Commands, look_for_garbage_rarely  # noqa: E402

# What is compiled for an example may take any time on a busy machine.
hypothesis.settings.register_profile('tests', deadline=None, max_examples=50)
hypothesis.settings.load_profile('tests')


def pytest_collection_finish():
    """What was imported is not searched for garbage over and over."""
    look_for_garbage_rarely()


@pytest.fixture
def tiny_config():
    """A config of its own for every test."""
    return tiny.config()


@pytest.fixture(scope='session')
def commands():
    """Runs commands of the project in forks of a process that has imported the libraries."""
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope='session')
def bucket():
    """The bucket gs://runs of a server on this machine; see `tests.buckets`."""
    for module in ('gcsfs', 'gcp_storage_emulator'):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed')
    from tests import buckets

    with buckets.served() as bucket:
        yield bucket
