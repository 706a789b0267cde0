"""Where compiled programs are kept, and which of them."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from resnet_jax.xla import compilation_cache

ROOT = pathlib.Path(__file__).parents[2]
COMPILES_TWICE = '''
import sys
import jax
from jax import monitoring
from resnet_jax.xla import compilation_cache

hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event))
compilation_cache.use(sys.argv[1])
for _ in range(2):
    jax.jit(lambda x: x * 3 + 1)(2.0)
    jax.clear_caches()
print(hits.count('/jax/compilation_cache/cache_hits') > 0)
'''


@pytest.fixture
def folder_in_use(monkeypatch):
    """The cache folder that JAX is configured with, relative to the argument of `use`."""
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    told = {}
    monkeypatch.setattr(jax.config, 'update', told.__setitem__)

    def use(folder):
        compilation_cache.use(folder)
        return told.get('jax_compilation_cache_dir')

    return use


def test_programs_are_kept_and_found_again_in_a_folder_for_the_type_of_cpu(tmp_path):
    environment = {name: value for name, value in os.environ.items()
                   if name != 'JAX_COMPILATION_CACHE_DIR'}
    process = subprocess.run(
        [sys.executable, '-c', COMPILES_TWICE, tmp_path / 'xla'], cwd=ROOT, text=True,
        capture_output=True, env=environment)
    assert process.stdout == 'True\n', process.stderr
    assert [path.name for path in (tmp_path / 'xla').iterdir()] == [compilation_cache.cpu_type()]
    assert len(list((tmp_path / 'xla').glob('cpu-*/*-cache'))) >= 1


def test_cpus_of_two_types_do_not_share_programs(tmp_path, monkeypatch, folder_in_use):
    names = []
    for cpu in ('flags\t\t: fpu sse avx512f\n', 'flags\t\t: fpu sse\n', None):
        file = tmp_path / 'cpuinfo'
        monkeypatch.setattr(compilation_cache, 'CPUINFO', file)
        if cpu is None:  # not Linux
            file.unlink()
        else:  # of two cores, whose clocks differ
            file.write_text(f'cpu MHz\t\t: 2100.5\n{cpu}\ncpu MHz\t\t: 3000.25\n{cpu}')
        names.append(pathlib.Path(folder_in_use(str(tmp_path / 'xla'))).name)
        file.write_text(f'cpu MHz\t\t: 1.5\n{cpu}')
        assert cpu is None or compilation_cache.cpu_type() == names[-1]
    assert len(set(names)) == 3 and all(name.startswith('cpu-') for name in names)


def test_nothing_is_kept_where_the_user_has_said_so(monkeypatch, folder_in_use):
    assert folder_in_use('') is None
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')  # JAX reads it
    assert folder_in_use('/here') is None


def test_programs_that_were_not_used_for_the_longest_time_give_way(tmp_path):
    (tmp_path / 'cpu-x').mkdir()
    names = ['b-cache', 'cpu-x/a-cache', 'c-cache', 'cpu-x/d-cache', 'notes.txt', 'e-cache']
    for age, name in enumerate(reversed(names)):
        (tmp_path / name).write_bytes(b'x' * 100)
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age - 1000))
    compilation_cache.prune(str(tmp_path), 250)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    assert left == {'cpu-x/d-cache', 'e-cache', 'notes.txt'}
    compilation_cache.prune(str(tmp_path), 250)
    compilation_cache.prune(str(tmp_path / 'missing'), 0)
    assert len(left) == sum(path.is_file() for path in tmp_path.rglob('*'))
