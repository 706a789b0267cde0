"""Requests to stop a run by SIGTERM or SIGINT, on which all processes of a job agree."""

import itertools
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

# Numbers the places at which a job may stop, in the order in which all processes reach them. JAX's
# preemption service chooses one of these numbers; it outlives a run, so none may occur twice.
_places = itertools.count(1)


class StopRequest:
    """Records SIGTERM and SIGINT while it is entered, until the loop asks for them.

    In a job of several processes, SIGTERM is left to JAX, whose preemption service notices it
    within a second and chooses the place at which all processes stop, once per job. SIGINT is
    passed on to it as SIGTERM.

    Python takes signals in the main thread only, so in other threads only JAX's service works.
    """

    def __init__(self):
        self._own: signal.Signals | None = None
        self._common: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            # A handler for SIGTERM would replace that of JAX.
            for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self._own is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self._own = signal.Signals(number)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def agreed(self) -> signal.Signals | None:
        """The signal to stop for, once all processes know of it, or None."""
        return self._own if jax.process_count() == 1 else self._common

    def asked(self) -> signal.Signals | None:
        """The signal to stop for, or None.

        All processes of a job must call this at the same places, and all get the same answer.
        """
        if jax.process_count() > 1 and self._common is None and (
                multihost_utils.reached_preemption_sync_point(next(_places))):
            with jax.transfer_guard('allow'):
                numbers = multihost_utils.process_allgather(np.int32(self._own or 0))
            self._common = signal.Signals(int(numbers.max()) or signal.SIGTERM)
        return self.agreed
