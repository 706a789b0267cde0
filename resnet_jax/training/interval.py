"""When checkpoints are due: every so many steps, or as the measured times ask for."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from resnet_jax.distributed.processes import of_first_process
from resnet_jax.output import duration

# Between failures of a job that come without SIGTERM, which saves: assumed.
FAILURE_SECONDS = 24 * 3600
MOST_SHARE = 0.01  # of the time, that saving may cost
FIRST_SECONDS = 60  # of training, before the first checkpoint, which is timed
SPEED_STEPS = 10  # after which the step of the first checkpoint is planned


class Times(NamedTuple):
    """What was measured, in seconds.

    Attributes:
      step: of a training step, with its share of the wait for data.
      save: for which training waits while a checkpoint is taken.
      write: until a checkpoint is completely written, which goes on beside training.
    """

    step: float
    save: float
    write: float


def steps_between(times: Times, per_call: int = 1) -> int:
    """Steps between two checkpoints, after J. Young, "A first order approximation to the optimum
    checkpoint interval", 1974: sqrt(2 C M) seconds, where a save costs C and failures are M apart.

    It is raised until saving costs at most MOST_SHARE of the time and until a write is over in half
    of the interval, and then to the next of 1, 2, 5, 10, … steps, so that times that differ
    slightly give the same steps.

    Args:
      times: measured.
      per_call: the steps that are compiled together, of which the result is a multiple.
    """
    seconds = max(math.sqrt(2 * times.save * FAILURE_SECONDS), times.save / MOST_SHARE,
                  2 * times.write)
    least = max(1.0, seconds / times.step / per_call)
    power = 10 ** int(math.log10(least))
    return per_call * next(n * power for n in (1, 2, 5, 10, 20) if n * power >= least)


class Interval:
    """The steps at which checkpoints are due, apart from those before evaluations.

    Where `checkpoint.every_steps` is 0, the first one comes after a minute of training, and the
    times measured until then, including that of its own save, say how often the others come. All
    processes follow the clock of process 0.

    Attributes:
      every: steps between checkpoints; None: not known yet, or no checkpoints are due.
    """

    def __init__(self, config: ConfigDict, step: int):
        """Begins at a step.

        Args:
          config: the fields `checkpoint.every_steps` and `steps_per_call` are read.
          step: of the checkpoint that the run resumes from, or 0.
        """
        self.every = config.checkpoint.every_steps or None
        self._automatic = config.checkpoint.every_steps == 0
        self._per_call = config.steps_per_call
        self._start = step
        self._next = self._after(step)

    def left(self, step: int) -> int | None:
        """Steps until the next one after this step is due; None: no step is known."""
        if self.every:
            return self.every - step % self.every
        return None if self._next is None or self._next <= step else self._next - step

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return self._next is not None and step >= self._next

    def saved(self, step: int) -> None:
        """Notes that a checkpoint of this step was taken."""
        if self.every:
            self._next = self._after(step)

    def asks_for_speed(self, step: int) -> bool:
        """Whether `plan` is to be called after this step: once, a few steps after the start."""
        return self._automatic and self._next is None and step >= self._start + SPEED_STEPS

    def plan(self, step: int, step_seconds: float) -> None:
        """Plans the first checkpoint; all processes call this at the same step.

        Args:
          step: steps done.
          step_seconds: of a step, so far.
        """
        seconds = of_first_process(step_seconds)
        self._next = step + max(1, math.ceil(FIRST_SECONDS / seconds))

    def asks_for_times(self, step: int) -> bool:
        """Whether the checkpoint of this step is the one to be timed."""
        return self._automatic and self.every is None and self.is_due(step)

    def choose(self, step: int, times: Times) -> str:
        """Sets the interval; all processes call this at the same step.

        Args:
          step: of the checkpoint that was timed.
          times: measured.

        Returns:
          What was chosen and why, a line for the terminal.
        """
        times = Times(*of_first_process(times))
        self.every = steps_between(times, self._per_call)
        self._next = self._after(step)
        seconds = self.every * times.step
        return (f'checkpoints every {self.every:,} steps ({duration(seconds)}), which costs '
                f'{100 * times.save / seconds:.2g} % of the time: a step takes {times.step:.3g} s, '
                f'a save {times.save:.2g} s, its write {times.write:.2g} s in the background; '
                f"Young's rule for a failure every {FAILURE_SECONDS // 3600} h")

    def _after(self, step: int) -> int | None:
        return (step // self.every + 1) * self.every if self.every else None
