"""Requests to stop, in a process that takes itself for one of a job."""

import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from resnet_jax.training.signals import StopRequest


@pytest.fixture
def two_processes(monkeypatch):
    """The numbers that JAX's service is asked about; it says stop at the third."""
    asked = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda x: np.stack([x, np.int32(0)]))
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point',
                        lambda place: asked.append(place) or len(asked) == 3)
    return asked


def test_a_job_stops_where_the_service_says_and_asks_no_more(two_processes):
    with StopRequest() as stop:
        answers = [stop.asked() for _ in range(5)]
    assert answers == [None, None, *[signal.SIGTERM] * 3]
    first = two_processes[0]
    assert two_processes == [first, first + 1, first + 2] and first > 0
    with StopRequest() as another:  # the service lives on, and its numbers go on
        another.asked()
    assert two_processes[-1] == first + 3


def test_ctrl_c_in_a_job_is_passed_on_as_sigterm_and_its_name_is_kept(two_processes):
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGTERM]
            assert [stop.asked() for _ in range(3)] == [None, None, signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_one_process_stops_at_once_and_gets_its_handlers_back():
    previous = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.asked() is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked() == stop.agreed == signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == previous
