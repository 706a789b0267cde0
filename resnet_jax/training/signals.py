"""Requests to stop a run, and the decisions of process 0 for all processes of a job."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

# Steps, or batches of an evaluation, between two times that several processes ask one another
# whether to stop.
ASK_EVERY = 10


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered, for the loop to ask after.

    Only a main thread can take signals: in another one nothing is noted.
    """

    def __init__(self):
        self._own: signal.Signals | None = None
        self._common: signal.Signals | None = None
        self._previous = {}
        self._since = ASK_EVERY  # steps since the processes asked one another

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self._own is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self._own = signal.Signals(number)

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def agreed(self) -> signal.Signals | None:
        """The signal that asks the run to stop, as far as all processes know of it, or None."""
        return self._own if jax.process_count() == 1 else self._common

    def asked(self, steps: int = 1) -> signal.Signals | None:
        """The signal that asks the run to stop, or None.

        Several processes must stop at the same place: they tell one another of their signals every
        `ASK_EVERY` steps, and all see the answer from then on. So all of them must call this at the
        same places.

        Args:
          steps: done since the last call; a batch of an evaluation counts as one.
        """
        self._since += steps
        if jax.process_count() > 1 and self._since >= ASK_EVERY and self._common is None:
            self._since = 0
            with jax.transfer_guard('allow'):
                numbers = multihost_utils.process_allgather(np.int32(self._own or 0))
            if numbers.max():
                self._common = signal.Signals(int(numbers.max()))
        return self.agreed
