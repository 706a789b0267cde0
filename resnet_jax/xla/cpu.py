"""Memory settings for training on CPU."""

import ctypes
import platform

import jax

from resnet_jax.xla import backend

# Parameters of mallopt(3) in glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def compute_in_main_thread() -> None:
    """Makes CPU computations run in the calling thread; call before JAX starts its backend."""
    jax.config.update('jax_cpu_enable_async_dispatch', False)


def keep_memory() -> None:
    """On CPU, keeps freed memory in the process instead of returning it to the system.

    XLA allocates new temporaries in every step, and zero-filled pages from the system are slow
    (docs/performance.md). glibc can keep up to 2 GiB in the main thread's arena, so computations
    must run there; see `compute_in_main_thread`.

    Raises:
      UserError: JAX cannot start; see `backend.devices`.
    """
    if backend.devices()[0].platform == 'cpu' and platform.libc_ver()[0] == 'glibc':
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
        # Older versions reject thresholds above 32 MiB. Their defaults grow up to that on their
        # own, but only while none has been set.
        if mallopt and mallopt(M_MMAP_THRESHOLD, MOST):
            mallopt(M_TRIM_THRESHOLD, MOST)
