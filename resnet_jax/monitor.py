"""What a run is watched by: requests to stop, the reports of its steps, and the profiler."""

import functools
import math
import pathlib
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.metrics import Meter, Metrics
from resnet_jax.steps import StepReport
from resnet_jax.writers import say

# Calls that the host may be ahead of the devices: enough to hide its own work, few enough that a
# request to stop is answered within a call or two.
IN_FLIGHT = 2
# Steps between two times that several processes ask one another whether to stop.
ASK_EVERY = 10


class Diverged(UserError):  # noqa: N818
    """The loss, the gradient or the parameters are no longer finite."""


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered, for the loop to ask after."""

    def __init__(self):
        self._own: signal.Signals | None = None
        self._agreed: signal.Signals | None = None
        self._previous = {}
        self._asked_at = -ASK_EVERY

    def __enter__(self) -> 'StopRequest':
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

    def asked(self, step: int | None = None) -> signal.Signals | None:
        """The signal that asks the run to stop, or None.

        Several processes must leave the loop at the same step: they tell one another of their
        signals every few steps, and all see the answer from then on.

        Args:
          step: that all processes are at; None where they may be at different ones.
        """
        if jax.process_count() == 1:
            return self._own
        if step is not None and step - self._asked_at >= ASK_EVERY and self._agreed is None:
            self._asked_at = step
            with jax.transfer_guard('allow'):
                numbers = multihost_utils.process_allgather(np.int32(self._own or 0))
            if numbers.max():
                self._agreed = signal.Signals(int(numbers.max()))
        return self._agreed


class StepLog:
    """The reports of the steps since the last line of the log.

    Attributes:
      meter: times the steps.
    """

    def __init__(self, config: ConfigDict, step: int):
        self.meter = Meter()
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
        """Waits for the pending steps and sees that they went well.

        Raises:
          Diverged: a step did not.
        """
        reports = [jax.tree.map(lambda x, i=i: x[i], call)
                   for call in jax.device_get(self._pending)
                   for i in range(len(call.learning_rate))]
        for report in reports:
            self._settled_step += 1
            measured = {'loss': report.metrics.loss.total, 'gradient': report.gradient_norm,
                        'norm of the parameters': report.parameter_norm}
            for name, value in measured.items():
                if not math.isfinite(value):
                    kept = (f'the checkpoint of step {last_checkpoint} is intact'
                            if last_checkpoint is not None else 'no checkpoint had been written')
                    raise Diverged(
                        f'the {name} became {value} in step {self._settled_step}; {kept}. Lower '
                        'schedule.learning_rate, warm up, or set optimizer.clip_norm, with another '
                        '--workdir.')
        self._reports += reports
        self._pending = []

    def read(self) -> dict[str, float]:
        """A row for the log; starts anew. To be called when all is settled."""
        metrics = functools.reduce(Metrics.merge, (r.metrics for r in self._reports)).report()
        last = self._reports[-1]
        self._reports = []
        return {
            'train/loss': metrics['loss'],
            'train/top1_error': metrics['top1_error'],
            'train/learning_rate': float(last.learning_rate),
            'train/gradient_norm': float(last.gradient_norm),
            'train/parameter_norm': float(last.parameter_norm),
            **self.meter.read(self._batch_size),
        }


class Profiler:
    """Traces the calls with a range of steps into workdir/profile, for TensorBoard or Perfetto."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        self._first = config.profile.start_step
        self._last = self._first + config.profile.num_steps
        self._folder = workdir / 'profile'
        self._running = False
        self._step = 0  # how many are done

    def before(self, step: int, end: int) -> None:
        """Starts with the first call, of the steps from step to end, that has one of the range."""
        if max(step, self._first) < min(end, self._last) and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, reports: StepReport) -> None:
        self._step = step
        if self._running and step >= self._last:
            jax.block_until_ready(reports)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f'wrote a trace up to step {self._step} to {self._folder}')
