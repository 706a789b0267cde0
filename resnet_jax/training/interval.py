"""When checkpoints are due: every so many steps, or as the measured times ask for."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from resnet_jax.distributed.processes import of_first_process
from resnet_jax.output import duration

# Between failures of a job that come without SIGTERM, which saves: assumed.
FAILURE_SECONDS = 24 * 3600
MOST_SHARE = 0.01  # of the time, that saving may cost
# After which the step of the first checkpoint, which is timed, is planned; already after the first
# step where so many of its length take longer than FIRST_SECONDS.
SPEED_STEPS = 10
FIRST_SECONDS = 60  # of training, between these and the first checkpoint


class Times(NamedTuple):
    """What was measured, in seconds.

    Attributes:
      step: of a training step, with its share of the wait for data; of the latest steps.
      save: for which training waits while a checkpoint is taken.
      write: from the start of a save until its files are complete, while training continues.
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

    Where `checkpoint.every_steps` is 0, the first one comes a minute after the first ten steps, or
    after the first step where ten of its length take longer than that. It is timed, unless the run
    ends there, and its times and those of the steps say how often the others come; each of these
    looks again at how long the steps since the last one took. Such a checkpoint comes at the end of
    the call in which it is due, so that the clock never changes which steps are compiled together.
    All processes follow the clock of process 0.

    Attributes:
      every: steps between checkpoints; None: not known yet, or no checkpoints are due.
    """

    def __init__(self, config: ConfigDict, step: int):
        """Begins at a step.

        Args:
          config: the fields `checkpoint.every_steps`, `num_steps` and `steps_per_call` are read.
          step: of the checkpoint that the run resumes from, or 0.
        """
        self.every = config.checkpoint.every_steps or None
        self._automatic = config.checkpoint.every_steps == 0
        self._per_call = config.steps_per_call
        self._start, self._end = step, config.num_steps
        self._next = self._after(step)
        self._times = Times(0.0, 0.0, 0.0)

    def left(self, step: int) -> int | None:
        """Steps until a call must end for the next checkpoint after this step; None: none must."""
        return None if self._automatic or not self.every else self.every - step % self.every

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return self._next is not None and step >= self._next

    def asks_for_speed(self, step: int) -> bool:
        """Whether `note_speed` is to be called after this step."""
        if self._next is not None:
            return self._automatic and self.is_due(step)
        is_known = self._times.step > 0
        return self._automatic and step >= self._start + (SPEED_STEPS if is_known else 1)

    def note_speed(self, step: int, step_seconds: float) -> None:
        """Notes how long steps take; all processes call this at the same step.

        Args:
          step: steps done.
          step_seconds: of a step, since the last call of this.
        """
        self._times = self._times._replace(step=of_first_process(step_seconds))
        is_slow = SPEED_STEPS * self._times.step > FIRST_SECONDS
        if self._next is None and (is_slow or step >= self._start + SPEED_STEPS):
            self._next = step + max(1, math.ceil(FIRST_SECONDS / self._times.step))

    def saved(self, step: int) -> str | None:
        """Notes that a checkpoint of this step was taken.

        Returns:
          How the interval has changed, a line for the terminal; None if it has not, or at the end
          of the run.
        """
        if not self.every:
            return None
        before = self.every
        if self._automatic and self.is_due(step):
            self.every = steps_between(self._times, self._per_call)
        self._next = self._after(step)
        return None if self.every == before or step == self._end else self._line()

    def asks_for_times(self, step: int) -> bool:
        """Whether the checkpoint of this step is the one to be timed."""
        return (self._automatic and self.every is None and self.is_due(step)
                and step != self._end)

    def choose(self, step: int, save: float, write: float) -> str:
        """Sets the interval; all processes call this at the same step.

        Args:
          step: of the checkpoint that was timed.
          save: see `Times`.
          write: see `Times`.

        Returns:
          What was chosen and why, a line for the terminal.
        """
        save, write = of_first_process([save, write])
        self._times = self._times._replace(save=save, write=write)
        self.every = steps_between(self._times, self._per_call)
        self._next = self._after(step)
        return self._line()

    def _line(self) -> str:
        assert self.every
        seconds = self.every * self._times.step
        step, save, write = map(_text, self._times)
        return (f'checkpoints every {self.every:,} steps ({duration(seconds)}), which costs '
                f'{100 * self._times.save / seconds:.2g} % of the time: a step takes {step}, '
                f'a save {save}, its write {write} in the background; '
                f"Young's rule for a failure every {FAILURE_SECONDS // 3600} h")

    def _after(self, step: int) -> int | None:
        return (step // self.every + 1) * self.every if self.every else None


def _text(seconds: float) -> str:
    return f'{seconds:.2g} s' if seconds < 10 else f'{seconds:,.0f} s'
