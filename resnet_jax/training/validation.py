"""Evaluation during training, with running or recalibrated batch-norm statistics."""

import collections
import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.output import say
from resnet_jax.training.log import IN_FLIGHT
from resnet_jax.training.program import Program
from resnet_jax.training.signals import StopRequest
from resnet_jax.training.state import TrainState, recalibrate


def compile_now(name: str, lower: Callable[..., jax.stages.Lowered], *args: Any) -> Callable:
    """Compiles ahead of time, so that no second compilation can slip in later; prints progress."""
    say(f'compiling the {name} …')  # takes minutes for 152 layers on a CPU
    start = time.perf_counter()
    compiled = lower(*args).compile()
    say(f'compiled the {name} in {time.perf_counter() - start:.1f} s')
    return compiled


def shapes_of(inputs: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of inputs, which decide which compiled program takes them."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(inputs))


def with_statistics(state: TrainState, batch_stats: Any) -> TrainState:
    """Replaces the running statistics used for evaluation."""
    if state.ema is None:
        return state.replace(batch_stats=batch_stats)
    return state.replace(ema={**state.ema, 'batch_stats': batch_stats})


def _on_host(index: jax.Array, found: Any) -> list[Any]:
    """The outputs of a batch's images, once they are there; the same in every process."""
    jax.block_until_ready(index)
    if found is None:
        return []
    if jax.process_count() > 1:
        outputs, mask = multihost_utils.process_allgather(found, tiled=True)
    else:
        outputs, mask = jax.device_get(found)
    return [jax.tree.map(lambda x: x[mask > 0], outputs)]


class Evaluator:
    """Evaluates states of one program; each function is compiled once, when it is first needed."""

    def __init__(self, program: Program, stop: StopRequest):
        self._program = program
        self._stop = stop
        self._eval_steps: dict[Any, Callable] = {}  # by the shapes of their inputs

    def evaluate(self, state: TrainState) -> dict[str, float] | None:
        """Evaluates every image of the evaluation split; returns None if a signal arrives.

        Returns:
          Values under their TensorBoard tags.
        """
        program, evaluation = self._program, self._program.eval_data
        index, sums = program.no_sums()
        eval_step = jax.jit(program.eval_step, out_shardings=(
            program.everywhere, program.everywhere, None))
        under_way: collections.deque[Any] = collections.deque()
        outputs: list[Any] = []
        with contextlib.closing(evaluation.inputs(0)) as feed:
            for _ in range(evaluation.num_batches):
                if self._stop.asked():
                    return None
                inputs = next(feed)
                if (shapes := shapes_of(inputs)) not in self._eval_steps:
                    self._eval_steps[shapes] = compile_now(
                        'evaluation step', eval_step.lower, state, inputs, index, sums)
                with jax.transfer_guard('disallow'):
                    index, sums, found = self._eval_steps[shapes](state, inputs, index, sums)
                under_way.append((index, found))
                if len(under_way) > IN_FLIGHT:
                    outputs += _on_host(*under_way.popleft())
        for index, found in under_way:
            outputs += _on_host(index, found)
        report = program.task.report(
            jax.device_get(sums),
            jax.tree.map(lambda *parts: np.concatenate(parts), *outputs) if outputs else None,
            program.config)
        return {f'eval/{name}': value for name, value in report.items()}

    def recalibrate(self, state: TrainState) -> Any | None:
        """Averages batch statistics over the training batches that would follow.

        Returns:
          A tree like `state.batch_stats`, or None if a signal arrives; the next start begins again.
        """
        program, batches = self._program, self._program.config.eval.recalibrate_batches
        shardings = program.shardings.batch_stats
        batch_statistics = jax.jit(
            program.batch_statistics, out_shardings=(program.everywhere, shardings))

        def collect(feed):
            index, compiled = jnp.copy(state.step), {}
            for inputs in itertools.islice(feed, batches):
                if self._stop.asked():
                    return
                if (shapes := shapes_of(inputs)) not in compiled:
                    compiled[shapes] = compile_now(
                        'recalibration', batch_statistics.lower, state, inputs, index)
                index, result = compiled[shapes](state, inputs, index)
                yield jax.block_until_ready(result)

        with contextlib.closing(program.train_data.inputs(program.config.num_steps)) as feed:
            mean = recalibrate(collect(feed))
        if self._stop.agreed:
            return None
        return jax.device_put(mean, shardings)
