"""The checkpoints of one run: written atomically by Orbax in the background, and rotated."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_jax.distributed.processes import of_first_process
from resnet_jax.output import warn, write_whole
from resnet_jax.storage import Path, absolute, in_bucket
from resnet_jax.weights.checkpoint import (
    EVALUATION,
    RECALIBRATED,
    STATE,
    is_complete,
    restore,
    restore_item,
    sealed,
    steps_in,
    stored_digests,
)
from resnet_jax.weights.digests import checksum, digests

# Sorts the values of an evaluation, by their tags, the best first; None: not to be compared.
Rank = Callable[[Mapping[str, float]], float | None]


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`.

    In a job of several processes all of them call every method, at the same steps.
    """

    def __init__(self, folder: Path, keep_last: int, rank: Rank | None = None):
        """Opens the folder, and clears away what an interrupted run left half-written.

        Args:
          folder: made if it is missing.
          keep_last: number of latest checkpoints to keep.
          rank: sorts evaluations, so that the best checkpoint is kept too; None: only the latest.

        Raises:
          Damaged: the description of the newest checkpoint is not what was written.
        """
        self._folder = folder
        for step in steps_in(folder)[-1:]:
            # Before Orbax looks at it, which would print all of it.
            stored_digests(folder / str(step), STATE)
        self._evaluations = _stored_evaluations(folder)
        self._policy = Keep(keep_last, self._evaluations, rank)
        self._manager = _Manager(
            absolute(folder), options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, cleanup_tmp_directories=True))
        if jax.process_index() == 0:
            # In complete checkpoints only: Orbax is deleting the others in a thread of its own.
            for step in [] if in_bucket(folder) else steps_in(folder):
                for half in (folder / str(step)).glob(f'{RECALIBRATED}.*'):
                    shutil.rmtree(half, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is one; it may still be being written."""
        return self._manager.latest_step()

    @property
    def written_step(self) -> int | None:
        """The step of the newest checkpoint that is completely on disk, if there is one."""
        return max(steps_in(self._folder), default=None)

    @property
    def evaluations(self) -> dict[int, dict[str, float]]:
        """What was measured, by step, of the checkpoints that are there."""
        return {step: self._evaluations[step] for step in self.steps if step in self._evaluations}

    def save(self, state: Any, step: int) -> None:
        """Copies the state off the devices and returns; the files are written in the background.

        Args:
          state: its buffers may be donated as soon as this returns.
          step: its name; nothing is done where this step has been saved.
        """
        if step not in self.steps:
            self._evaluations.pop(step, None)
            self._manager.save(step, args=ocp.args.StandardSave(state),
                               custom_metadata=sealed(digests(state)))

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The training state of a checkpoint, the newest by default; see `restore`."""
        step = self.latest_step if step is None else step
        return restore(self._folder / str(step), like)

    def adopt(self, origin: Path, like: Any) -> int:
        """Takes over a checkpoint of another run, to resume from.

        Its evaluation stays behind: it may be of other data, or of recalibrated statistics.

        Args:
          origin: its folder.
          like: see `restore`.

        Returns:
          Its step.

        Raises:
          UserError, Damaged: see `restore`.
        """
        step = int(origin.name)
        self.save(restore(origin, like), step)
        self.wait()
        return step

    def write_recalibrated(self, step: int, batch_stats: Any) -> None:
        """Stores running statistics for evaluation beside the state of a step.

        Args:
          step: of a checkpoint; its save is waited for.
          batch_stats: like those of the state.
        """
        self.wait()
        folder = absolute(self._folder / str(step) / RECALIBRATED)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.StandardSave(batch_stats), force=True,
                              custom_metadata=sealed(digests(batch_stats)))

    def read_recalibrated(self, step: int, like: Any) -> Any | None:
        """The running statistics that were stored beside the state of a step, if any were.

        Args:
          step: of a checkpoint.
          like: a tree of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Raises:
          UserError: the files are damaged, or hold those of another network.
        """
        folder = self._folder / str(step)
        if not is_complete(folder / RECALIBRATED):
            return None
        return restore_item(folder, RECALIBRATED, like)

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Stores what was measured beside the state of a step, and keeps the best checkpoint.

        Args:
          step: of a checkpoint; its save is waited for.
          values: by their tags.
        """
        self.wait()
        self._evaluations[step] = dict(values)
        if jax.process_index() == 0:
            content = {'values': dict(values), 'checksum': checksum(dict(values))}
            write_whole(self._folder / str(step) / EVALUATION, json.dumps(content) + '\n')
        kept = self._policy.kept(self.steps)
        for old in self.steps:
            if old not in kept:
                self._manager.delete(old)

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends."""
        self.wait()
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves it to the training loop to ask JAX's preemption service.

    The service compares the numbers of the last questions between processes, so that questions of
    two kinds would confuse it; see `training.signals`.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Keep(preservation_policy.PreservationPolicy):
    """Keeps the newest checkpoints, and the best one; of equals, the newest."""

    def __init__(self, last: int, evaluations: Mapping[int, Mapping[str, float]],
                 rank: Rank | None):
        self._last = last
        self._evaluations = evaluations
        self._rank = rank

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Which of these steps are to be kept."""
        ranks = {step: self._rank(self._evaluations[step])
                 for step in steps if self._rank and step in self._evaluations}
        evaluated = [step for step, rank in ranks.items() if rank is not None]
        best = sorted(evaluated, key=lambda step: (ranks[step], -step))[:1]
        return {*sorted(steps)[-self._last:], *best}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _stored_evaluations(folder: Path) -> dict[int, dict[str, float]]:
    """The evaluations of all checkpoints, as process 0 reads them."""
    found = {}
    if jax.process_index() == 0:
        found = {step: _evaluation(folder / str(step)) for step in steps_in(folder)}
    # Processes that disagreed on the best checkpoint would not delete alike.
    return {int(step): values for step, values in of_first_process(found).items() if values}


def _evaluation(checkpoint: Path) -> dict[str, float] | None:
    """What is stored of the evaluation of a checkpoint; None, with a warning, if damaged."""
    file = checkpoint / EVALUATION
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        if content['checksum'] == checksum(content['values']):
            return content['values']
    except (OSError, ValueError, TypeError, KeyError):
        pass
    warn(f'{file} is damaged and is treated as missing.')
    return None
