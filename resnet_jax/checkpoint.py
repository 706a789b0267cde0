"""Checkpoints of the training state: Orbax, written in the background, whole or not at all."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_jax.errors import UserError
from resnet_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`."""

    def __init__(self, folder: pathlib.Path, keep_last: int,
                 errors: Mapping[int, float] | None = None):
        """Opens the folder, and clears away what an interrupted run left half-written.

        Args:
          folder: made if it is not there.
          keep_last: the newest so many are kept.
          errors: top-1 error of each step that has been evaluated; looked at after every save, so
            it may grow. The checkpoint with the lowest is kept as well. None: it is not.
        """
        policies = [preservation_policy.LatestN(keep_last)]
        if errors is not None:
            policies.append(KeepBest(errors))
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True))

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int) -> None:
        """Copies the state off the devices and returns; writing goes on in the background.

        Args:
          state: its buffers may be donated as soon as this returns.
          step: its name; nothing is done where this step has been saved.
        """
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> TrainState:
        """The newest checkpoint.

        Args:
          like: a `TrainState` of `jax.ShapeDtypeStruct` with the shardings to restore to; the mesh
            may be another than the one that the checkpoint was written on.

        Raises:
          UserError: the files are damaged, or hold another kind of state.
        """
        step = self.latest_step
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:  # tensorstore, Orbax and json raise many kinds
            reason = ' '.join(str(error).split())[:300]
            raise UserError(
                f'the checkpoint {self._folder / str(step)} cannot be read; move it away to go on '
                f'from the one before it. ({type(error).__name__}: {reason})') from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the checkpoint whose step has the lowest error; of equal ones, the newest."""

    def __init__(self, errors: Mapping[int, float]):
        self._errors = errors

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = min((checkpoint.step for checkpoint in checkpoints
                    if checkpoint.step in self._errors),
                   key=lambda step: (self._errors[step], -step), default=None)
        return [checkpoint.step == best for checkpoint in checkpoints]
