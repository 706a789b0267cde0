"""Collects metrics and timings of steps between two log rows."""

import functools
import math
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.tasks import Task
from resnet_jax.training.step import StepReport

# Calls that the host may be ahead of the devices: enough to hide its own work, few enough that the
# run stops within a call or two of a request.
IN_FLIGHT = 2


class Diverged(UserError):  # noqa: N818
    """The loss, the gradient or the parameters are no longer finite."""


class StepLog:
    """The reports of the steps since the last line of the log.

    Attributes:
      meter: times the steps.
    """

    def __init__(self, config: ConfigDict, task: Task, step: int):
        self.meter = Meter()
        self._task = task
        self._batch_size = config.batch_size
        self._settled_step = step
        self._pending: list[StepReport] = []  # of a call each, on the devices
        self._reports: list[StepReport] = []  # of a step each, on the host

    def add(self, reports: StepReport) -> None:
        """Takes the stacked reports of the next call, and waits for the one IN_FLIGHT before it."""
        self._pending.append(reports)
        if len(self._pending) > IN_FLIGHT:
            jax.block_until_ready(self._pending[-IN_FLIGHT - 1])

    def settle(self, last_checkpoint: int | None) -> None:
        """Waits for the pending steps and checks that their values are finite.

        Args:
          last_checkpoint: step of the latest checkpoint, if there is one.

        Raises:
          Diverged: the loss, the gradient or the parameters of a step are not finite.
        """
        reports = [jax.tree.map(lambda x, i=i: x[i], call)
                   for call in jax.device_get(self._pending)
                   for i in range(len(call.learning_rate))]
        for report in reports:
            self._settled_step += 1
            measured = {'loss': self._task.train_report(report.metrics)['loss'],
                        'gradient': report.gradient_norm,
                        'norm of the parameters': report.parameter_norm}
            for name, value in measured.items():
                if not math.isfinite(value):
                    kept = (f'the latest checkpoint is of step {last_checkpoint}'
                            if last_checkpoint is not None else 'no checkpoint had been written')
                    raise Diverged(
                        f'the {name} became {value} in step {self._settled_step}; {kept}. Lower '
                        'schedule.learning_rate, add a warm-up or set optimizer.clip_norm, and use '
                        'another --workdir' + (
                            '; to start it from this checkpoint, pass --config.init.resume_from='
                            f'WORKDIR/checkpoints/{last_checkpoint}.'
                            if last_checkpoint is not None else '.'))
        self._reports += reports
        self._pending = []

    def row(self) -> dict[str, float]:
        """Averages the steps since `reset` into a row; all of them must be settled."""
        metrics = jax.tree.map(lambda *sums: functools.reduce(np.add, sums),
                               *(report.metrics for report in self._reports))
        last = self._reports[-1]
        return {
            **{f'train/{name}': value
               for name, value in self._task.train_report(metrics).items()},
            'train/learning_rate': float(last.learning_rate),
            'train/gradient_norm': float(last.gradient_norm),
            'train/parameter_norm': float(last.parameter_norm),
            **self.meter.rates(self._batch_size),
        }

    def reset(self) -> None:
        """Begins the next row."""
        self._reports = []
        self.meter.reset()


class Meter:
    """Times the steps between two lines of the log.

    Evaluation, checkpoints and compilation are paused out of it.
    """

    def __init__(self):
        self._elapsed = self._waited = 0.0
        self._started = time.perf_counter()
        self._steps = 0
        self._before = (0.0, 0)  # elapsed and steps from the last lap to the last line

    def start(self) -> None:
        self._started = time.perf_counter()

    def pause(self) -> None:
        self._elapsed += time.perf_counter() - self._started

    def waited(self, seconds: float, steps: int) -> None:
        """Counts steps, and the time that they spent waiting for the data of the next."""
        self._waited += seconds
        self._steps += steps

    def rates(self, batch_size: int) -> dict[str, float]:
        """Computes images_per_second and data_wait_fraction since the last `reset`."""
        self.pause()
        self.start()
        seconds = max(self._elapsed, 1e-9)
        return {'train/images_per_second': self._steps * batch_size / seconds,
                'train/data_wait_fraction': self._waited / seconds}

    def lap(self) -> float:
        """Seconds per step since the last call of this, across lines; at least one was done."""
        self.pause()
        self.start()
        seconds, steps = self._before
        self._before = (-self._elapsed, -self._steps)
        return max(seconds + self._elapsed, 1e-9) / (steps + self._steps)

    def reset(self) -> None:
        """Begins the next line."""
        self._before = (self._before[0] + self._elapsed, self._before[1] + self._steps)
        self._elapsed = self._waited = 0.0
        self._steps = 0
        self.start()
