"""The on-disk cache of compiled programs."""

import contextlib
import glob
import hashlib
import os
import pathlib
import platform

import jax

from resnet_jax.xla import backend

MAX_BYTES = 2 * 2**30  # that a folder holds when a process has started
CPUINFO = pathlib.Path('/proc/cpuinfo')
# What decides which instructions LLVM uses, on x86 and on ARM.
CPUINFO_FIELDS = ('model name', 'flags', 'CPU implementer', 'CPU part', 'Features')


def use(folder: str) -> None:
    """Keeps compiled programs in a folder, or where the environment says.

    Programs for CPUs lie in a subfolder for the type of CPU: homes are shared, and XLA compiles for
    the instructions of the machine that it runs on. The programs that have not been used for the
    longest time are deleted, so that MAX_BYTES are left.

    Args:
      folder: '' keeps nothing.

    Raises:
      UserError: JAX cannot start; see `backend.devices`.
    """
    if folder and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        folder = os.path.expanduser(folder)
        prune(folder, MAX_BYTES)
        if backend.devices()[0].platform == 'cpu':
            folder = os.path.join(folder, cpu_type())
        jax.config.update('jax_compilation_cache_dir', folder)
    # By default, only programs that took over a second to compile are kept, but small ones add up.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def cpu_type() -> str:
    """A name for the CPUs of this machine, 'cpu-' and a digest of their model and features."""
    try:
        lines = {line for line in CPUINFO.read_text().splitlines()
                 if line.split(':')[0].strip() in CPUINFO_FIELDS}
    except OSError:
        lines = set()
    text = '\n'.join(sorted(lines) or [platform.machine(), platform.processor()])
    return f'cpu-{hashlib.sha256(text.encode()).hexdigest()[:12]}'


def prune(folder: str, max_bytes: int) -> None:
    """Deletes the programs of a folder that were used the longest ago, until the rest fits.

    JAX's own limit, `jax_compilation_cache_max_size`, is not used: it needs another package, locks
    the folder for every program, and fails on programs that were kept without it.
    """
    files = []
    for pattern in ('*-cache', 'cpu-*/*-cache'):
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            with contextlib.suppress(OSError):  # another process has deleted it
                status = os.stat(path)
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):
            os.remove(path)
        total -= size
