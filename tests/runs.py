"""Runs that are stopped, and steps in float64, for tests of all tasks."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp

from resnet_jax.distributed import sharding
from resnet_jax.training.log import StepLog
from resnet_jax.training.program import build


def stop_at(monkeypatch, call):
    """Has this process get SIGTERM as the log is given the reports of a step for this time.

    The list that is returned grows by an element with every such call.
    """
    add, calls = StepLog.add, []

    def stopping(log, reports):
        calls.append(reports)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(log, reports)

    monkeypatch.setattr(StepLog, 'add', stopping)
    return calls


def in_float64(config, steps):
    """What each of some steps in float64 reports, by name, and the parameters after them."""
    with jax.enable_x64(True):
        program = build(config, sharding.create_mesh(config))
        program = dataclasses.replace(program, model=program.model.clone(dtype=jnp.float64))
        state = jax.jit(program.create_state, out_shardings=program.shardings)()
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        step = jax.jit(program.train_step, out_shardings=(program.shardings, program.everywhere))
        feed, reports = program.train_data.inputs(0), []
        for _ in range(steps):
            state, report = step(state, next(feed))
            reports.append({name: float(x) for name, x in report.metrics.items()})
        assert step._cache_size() == 1
        return reports, jax.device_get(state.params)
