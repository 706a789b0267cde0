"""Checkpoints of the training state: Orbax, written in the background, whole or not at all."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_jax.errors import UserError
from resnet_jax.state import TrainState

ERROR = 'eval/top1_error'  # what the best checkpoint has the lowest of


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`.

    Attributes:
      best_error: the lowest top-1 error that a kept checkpoint was evaluated to, or infinity.
    """

    def __init__(self, folder: pathlib.Path, keep_last: int, keep_best: bool):
        """Opens the folder, and clears away what an interrupted run left half-written.

        Args:
          folder: made if it is not there.
          keep_last: the newest so many are kept.
          keep_best: the one with the lowest error is kept as well.
        """
        policies = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            policies.append(preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[ERROR], reverse=True, n=1,
                keep_checkpoints_without_metrics=False))
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[ERROR], best_mode='min',
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True))
        measured = [self._manager.metrics(step) for step in self._manager.all_steps()]
        self.best_error = min((m[ERROR] for m in measured if m), default=float('inf'))

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, error: float | None = None) -> None:
        """Copies the state off the devices and returns; writing goes on in the background.

        Args:
          state: its buffers may be donated as soon as this returns.
          step: its name; nothing is done where this step has been saved.
          error: top-1 error in percent, if the state has been evaluated.
        """
        if step == self.latest_step:
            return
        if error is not None:
            self.best_error = min(self.best_error, error)
        self._manager.save(step, args=ocp.args.StandardSave(state),
                           metrics=None if error is None else {ERROR: error})

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
