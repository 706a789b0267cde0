"""Processor cores and memory, on Linux and on systems that lack what Linux offers."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from resnet_jax.distributed.cores import available_cores, core_numbers
from resnet_jax.xla import cpu

FAULTS = '''
import resource
from resnet_jax.xla import cpu
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
def test_a_step_finds_the_memory_of_the_step_before(commands):
    fresh, kept = (int(commands.run('-c', FAULTS.format(keep=keep), env={'XLA_FLAGS': None}).output)
                   for keep in (False, True))
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


def test_cores_are_those_of_the_process_or_all_where_the_system_restricts_none(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {5, 3}, raising=False)
    assert core_numbers() == (3, 5)
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    assert core_numbers() == (0, 1, 2, 3)
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert available_cores() == 1


# The training command where neither Python nor the C library has what only Linux and glibc have.
ELSEWHERE = '''
import ctypes, os, runpy, sys
for name in ('sched_getaffinity', 'sched_setaffinity', 'pidfd_open', 'memfd_create'):
    delattr(os, name)
load = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **kwargs: object() if name is None else load(
    name, *args, **kwargs)
sys.argv[0] = 'main'
runpy.run_module('resnet_jax.main', run_name='__main__')
'''


@pytest.mark.slow
def test_training_needs_nothing_that_only_linux_has(tmp_path):
    process = subprocess.run(
        [sys.executable, '-c', ELSEWHERE, '--config=configs/digits_r20.py',
         f'--workdir={tmp_path}', '--config.model.depth=8', '--config.model.width=4',
         '--config.num_steps=3', '--config.schedule.warmup=none',
         '--config.data.pipeline=host', '--config.compilation_cache='],
        capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert process.returncode == 0, process.stderr
    assert 'done: top-1 error' in process.stdout
