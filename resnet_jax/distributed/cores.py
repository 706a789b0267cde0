"""The CPU cores that this process may use."""

import os
from collections.abc import Iterable


def core_numbers() -> tuple[int, ...]:
    """The numbers of the cores that this process may use, ascending.

    Only some systems, such as Linux, restrict a process to some of the machine's cores; on others
    all of them count.
    """
    if hasattr(os, 'sched_getaffinity'):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def available_cores() -> int:
    """How many cores this process may use, at least 1."""
    return len(core_numbers())


def restrict(process_id: int, cores: Iterable[int]) -> None:
    """Restricts a process to some cores, where the system can do that.

    Args:
      process_id: of the process; 0: this one.
      cores: numbers of cores, see `core_numbers`.
    """
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(process_id, cores)
