"""Training on a CPU: the memory of one step is kept for the next."""

import ctypes
import platform

import jax

from resnet_jax.xla import backend

# Of mallopt(3), for glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def compute_in_main_thread() -> None:
    """Computations on one CPU run in the thread that calls them; before JAX starts its backend."""
    jax.config.update('jax_cpu_enable_async_dispatch', False)


def keep_memory() -> None:
    """Memory that was freed stays with the process, where it trains on a CPU.

    XLA's CPU backend allocates the temporaries of a step anew each time. glibc takes blocks of
    their size from the system and gives them back, and the system fills 51,000 pages with zeros in
    every step of ResNet-20 at batch 128: a sixth of its processor time. What the main thread has
    allocated in its own arena can be kept (up to 2 GiB), so the computations have to run there; see
    `compute_in_main_thread`. One arena for all threads slowed two cores instead.

    Raises:
      UserError: JAX cannot start; see `backend.devices`.
    """
    if backend.devices()[0].platform == 'cpu' and platform.libc_ver()[0] == 'glibc':
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
        # Older versions refuse thresholds above 32 MiB. They are left to their own, which grow to
        # that by themselves, but not once one has been set.
        if mallopt and mallopt(M_MMAP_THRESHOLD, MOST):
            mallopt(M_TRIM_THRESHOLD, MOST)
