"""Memory that a process on a CPU keeps."""

import platform
import subprocess
import sys

import pytest

from resnet_jax import cpu

FAULTS = '''
import resource
from resnet_jax import cpu
cpu.compute_in_main_thread()
import jax, jax.numpy as jnp
if {keep}:
    cpu.keep_memory()
# Its temporaries are 64 MiB at least, 16,384 pages of 4 KiB.
turn = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y[::-1] + i, x).sum())
x = jnp.zeros(2**24)
faults = []
for _ in range(12):
    turn(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
# The least: now and then a block is freed only after the next one was allocated.
print(min(after - before for before, after in zip(faults, faults[1:])))
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_a_step_finds_the_memory_of_the_step_before():
    fresh, kept = (int(subprocess.run(
        [sys.executable, '-c', FAULTS.format(keep=keep)], check=True, capture_output=True,
        text=True, env={'PATH': '', 'JAX_PLATFORMS': 'cpu'}).stdout) for keep in (False, True))
    assert fresh >= 16_000
    assert kept <= 100


def test_a_c_library_that_refuses_so_high_a_threshold_is_left_as_it_is(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append(parameter)
            return 0

    monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.31'))
    monkeypatch.setattr(cpu.ctypes, 'CDLL', lambda _: Library())
    cpu.keep_memory()
    assert calls == [cpu.M_MMAP_THRESHOLD]
