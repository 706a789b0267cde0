"""Memory that was freed stays with the process, instead of going back to the system and forth."""

import contextlib
import ctypes

# Of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = 2**31 - 1


def keep() -> None:
    """Lets malloc reuse large blocks; to be called before the process has other threads.

    XLA:CPU allocates the temporaries of every step anew. glibc maps blocks of that size freshly
    from the system, which clears each page when it is first touched: 78,094 pages in a step of
    ResNet-20 at batch 128, and 132 of its 579 ms of processor time. With one arena, which all
    threads share, that grows and never shrinks, none are left, and the step takes 449 ms.

    Does nothing where there is no glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
