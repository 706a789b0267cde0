"""Profiles a few steps, for TensorBoard or Perfetto."""

import pathlib
import tempfile

import jax
from ml_collections import ConfigDict

from resnet_jax import storage
from resnet_jax.output import say
from resnet_jax.training.step import StepReport


class Profiler:
    """Traces the calls with a range of steps into workdir/profile, for TensorBoard or Perfetto."""

    def __init__(self, config: ConfigDict, workdir: storage.Path):
        self._first = config.profile.start_step
        self._last = self._first + config.profile.num_steps
        self._folder = workdir / 'profile'
        self._running = False
        self._step = 0  # steps done

    def before(self, step: int, end: int) -> None:
        """Starts the trace at the first call, from `step` to `end`, that overlaps the range."""
        if max(step, self._first) < min(end, self._last) and not self._running:
            # JAX writes to file systems only.
            self._local = tempfile.TemporaryDirectory() if storage.in_bucket(self._folder) else None
            jax.profiler.start_trace(self._local.name if self._local else str(self._folder))
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
            if self._local:
                storage.upload(pathlib.Path(self._local.name), self._folder)
                self._local.cleanup()
            say(f'wrote a trace up to step {self._step} to {self._folder}')
