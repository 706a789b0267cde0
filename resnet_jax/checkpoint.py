"""Checkpoints of the training state: Orbax, written in the background, whole or not at all.

The layout on disk, of which nothing else in the project knows:

  checkpoints/<step>/default/           the training state
  checkpoints/<step>/_CHECKPOINT_METADATA   Orbax's, with the digests of the state
  checkpoints/<step>/recalibrated/      running statistics for evaluation, with digests likewise
  checkpoints/<step>/evaluation.json    what the evaluation of the state measured

The last two are written after the state, each whole or not at all, and deleted with it.
"""

import contextlib
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_jax.digests import by_path, checksum, description, digests
from resnet_jax.errors import UserError
from resnet_jax.state import TrainState
from resnet_jax.stopping import of_first_process
from resnet_jax.writers import warn, write_whole

HEADLINE = 'eval/top1_error'  # the best checkpoint has the lowest
FOLDER = 'checkpoints'  # in the workdir
STATE, RECALIBRATED, EVALUATION = 'default', 'recalibrated', 'evaluation.json'
METADATA = '_CHECKPOINT_METADATA'  # Orbax's, beside the arrays or in the folder above
LISTED = 4  # arrays that an error names


class Damaged(UserError):  # noqa: N818
    """The files of a checkpoint are not what was written."""


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`.

    In a job of several processes all of them call every method, at the same steps.
    """

    def __init__(self, folder: pathlib.Path, keep_last: int, keep_best: bool = False):
        """Opens the folder, and clears away what an interrupted run left half-written.

        Args:
          folder: made if it is missing.
          keep_last: so many of the newest checkpoints are kept.
          keep_best: whether the checkpoint with the lowest error is kept as well.

        Raises:
          Damaged: the description of the newest checkpoint is not what was written.
        """
        self._folder = folder
        for step in steps_in(folder)[-1:]:
            # Before Orbax looks at it, which would print all of it.
            _stored_digests(folder / str(step), STATE)
        self._evaluations = _stored_evaluations(folder)
        self._policy = Keep(keep_last, self._evaluations if keep_best else {})
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, cleanup_tmp_directories=True))
        if jax.process_index() == 0:
            for half in folder.glob(f'*/{RECALIBRATED}.*'):
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

    def save(self, state: TrainState, step: int) -> None:
        """Copies the state off the devices and returns; writing goes on in the background.

        Args:
          state: its buffers may be donated as soon as this returns.
          step: its name; nothing is done where this step has been saved.
        """
        if step not in self.steps:
            self._evaluations.pop(step, None)
            self._manager.save(step, args=ocp.args.StandardSave(state),
                               custom_metadata=_sealed(digests(state)))

    def restore(self, like: Any, step: int | None = None) -> TrainState:
        """The training state of a checkpoint, the newest by default; see `restore`."""
        step = self.latest_step if step is None else step
        return restore(self._folder / str(step), like)

    def adopt(self, origin: pathlib.Path, like: Any) -> int:
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
        folder = (self._folder / str(step) / RECALIBRATED).absolute()
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.StandardSave(batch_stats), force=True,
                              custom_metadata=_sealed(digests(batch_stats)))

    def read_recalibrated(self, step: int, like: Any) -> Any | None:
        """The running statistics that were stored beside the state of a step, if any were.

        Args:
          step: of a checkpoint.
          like: a tree of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Raises:
          UserError: the files are damaged, or hold those of another network.
        """
        folder = self._folder / str(step)
        if not (folder / RECALIBRATED).is_dir():
            return None
        return _restore(folder, RECALIBRATED, like)

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


class Keep(preservation_policy.PreservationPolicy):
    """Keeps the newest checkpoints, and the one with the lowest error; of equals, the newest."""

    def __init__(self, last: int, evaluations: Mapping[int, Mapping[str, float]]):
        self._last = last
        self._evaluations = evaluations

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Which of these steps are to be kept."""
        def rank(step):
            error = self._evaluations[step][HEADLINE]
            return (error if math.isfinite(error) else math.inf, -step)

        evaluated = [step for step in steps if HEADLINE in self._evaluations.get(step, {})]
        return {*sorted(steps)[-self._last:], *sorted(evaluated, key=rank)[:1]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, in ascending order."""
    return sorted(int(path.name) for path in folder.glob('*')
                  if path.name.isdigit() and path.is_dir())


def locate(path: pathlib.Path) -> pathlib.Path:
    """The folder of the checkpoint that a path means: one of a run, or the newest of a workdir.

    Raises:
      UserError: there is none.
    """
    path = path.expanduser()
    if path.parent.name == FOLDER and path.name.isdigit() and path.is_dir():
        return path
    if not path.is_dir():
        raise UserError(f'there is no folder {path}.')
    steps = steps_in(path / FOLDER)
    if not steps:
        raise UserError(f'{path} holds no checkpoints; a folder of weights is a workdir of '
                        'resnet_jax.main or was written by resnet_jax.convert.')
    return path / FOLDER / str(steps[-1])


def restore(checkpoint: pathlib.Path, like: Any) -> TrainState:
    """The training state of a checkpoint, verified.

    Args:
      checkpoint: its folder.
      like: a `TrainState` of `jax.ShapeDtypeStruct` with the shardings to restore to; the mesh may
        be another than the one that the checkpoint was written on.

    Raises:
      UserError: the checkpoint holds another kind of state.
      Damaged: its files are not what was written.
    """
    return _restore(checkpoint, STATE, like)


def read_weights(checkpoint: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a checkpoint as its evaluation used them, verified.

    Args:
      checkpoint: its folder.

    Returns:
      Variables and normalisation, trees of numpy arrays: the moving averages, where the run kept
      any, and recalibrated statistics, where it stored any.

    Raises:
      Damaged: its files are not what was written.
    """
    tree = _tree(checkpoint, STATE)
    averages = tree.get('ema') is not None
    fields = ['normalization', *(['ema'] if averages else ['params', 'batch_stats'])]
    if missing := [field for field in fields if field not in tree]:
        raise _damaged(checkpoint, f'{", ".join(missing)} missing')
    state = _read(checkpoint, STATE, {field: tree[field] for field in fields})
    normalization = state.pop('normalization')
    variables = state['ema'] if averages else state
    if (checkpoint / RECALIBRATED).is_dir():
        recalibrated = _read(checkpoint, RECALIBRATED, _tree(checkpoint, RECALIBRATED))
        variables = {**variables, 'batch_stats': recalibrated}
    return variables, normalization


def _restore(checkpoint: pathlib.Path, item: str, like: Any) -> Any:
    """An item of a checkpoint, verified and laid out like a tree of `jax.ShapeDtypeStruct`.

    Every process reads all of it: nothing but the arrays is needed then, and whatever goes wrong
    on the devices is no matter of the files.
    """
    tree = _tree(checkpoint, item)
    _check_fits(checkpoint, item, like, tree)
    arrays = by_path(_read(checkpoint, item, tree))
    placed = [jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
              for name, leaf in by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _tree(checkpoint: pathlib.Path, item: str) -> dict[str, Any]:
    """The shapes and dtypes of an item, as Orbax describes them; they are those of the digests."""
    try:
        with quiet_ends():
            tree = ocp.PyTreeCheckpointHandler().metadata((checkpoint / item).absolute()).tree
    except Exception as error:  # tensorstore, Orbax and json raise many kinds
        raise _damaged(checkpoint, error) from error
    stored = _stored_digests(checkpoint, item)
    if stored is not None and stored.keys() != by_path(tree).keys():
        raise _damaged(checkpoint, 'its description lists other arrays than were written')
    return tree


def _read(checkpoint: pathlib.Path, item: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Parts of an item as numpy arrays, whatever devices they were saved from, verified."""
    stored = _stored_digests(checkpoint, item)
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    try:
        with quiet_ends():
            tree = ocp.PyTreeCheckpointHandler().restore(
                (checkpoint / item).absolute(), args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=on_host, partial_restore=True))
    except Exception as error:  # tensorstore, Orbax and json raise many kinds
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
            raise
        raise _damaged(checkpoint, error) from error
    _verify(checkpoint, tree, stored)
    return tree


@contextlib.contextmanager
def quiet_ends() -> Iterator[None]:
    """Where one read or write fails, the others end in silence.

    Orbax closes its event loop at the first error; whatever ends later finds it closed, and Python
    would print a traceback for each.
    """
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != 'Event loop is closed':
            before(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before  # not after an error: others are still under way


def _check_fits(checkpoint: pathlib.Path, item: str, like: Any, tree: Any) -> None:
    """Raises UserError where a checkpoint holds other arrays than are asked for.

    Args:
      checkpoint, item: which.
      like: what is asked for.
      tree: see `_tree`; where there are digests, shapes and dtypes are taken from them.
    """
    stored = _stored_digests(checkpoint, item)
    if stored is None:
        held = {name: description(leaf) for name, leaf in by_path(tree).items()}
    else:
        held = {name: digest.partition(' ')[0] for name, digest in stored.items()}
    needed = {name: description(leaf) for name, leaf in by_path(like).items()}
    other = [name for name in {**needed, **held} if needed.get(name) != held.get(name)]
    if other:
        listed = ', '.join(f'{name} ({held.get(name, "missing")}, needed '
                           f'{needed.get(name, "none")})' for name in other[:LISTED])
        raise UserError(f'{checkpoint} does not fit the network and the optimizer of this config: '
                        f'{len(other)} arrays differ, among them {listed}.')


def _sealed(values: dict[str, str]) -> dict[str, Any]:
    return {'digests': values, 'checksum': checksum(values)}


def _stored_digests(checkpoint: pathlib.Path, item: str) -> dict[str, str] | None:
    """The digests that were stored with an item; None if it was written without any."""
    folder = checkpoint if item == STATE else checkpoint / item
    try:
        sealed = json.loads((folder / METADATA).read_text()).get('custom_metadata') or {}
        if not sealed:
            return None
        values = dict(sealed['digests'])
        sound = checksum(values) == sealed['checksum']
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(checkpoint, error) from error
    if not sound:
        raise _damaged(checkpoint, f'the checksum of {folder / METADATA} is wrong')
    return values


def _verify(checkpoint: pathlib.Path, tree: Any, stored: dict[str, str] | None) -> None:
    """Raises Damaged where an array is not what was stored; a tree may be a part of the item."""
    if stored is None:
        return
    changed = [name for name, digest in digests(tree).items() if stored.get(name) != digest]
    if changed:
        raise _damaged(checkpoint, 'not as they were written: ' + ', '.join(changed[:LISTED])
                       + (f' and {len(changed) - LISTED} more' if len(changed) > LISTED else ''))


def _damaged(checkpoint: pathlib.Path, what: Exception | str) -> Damaged:
    """The sentence: what is wrong with which checkpoint, and what to do."""
    if isinstance(what, Exception):
        what = f'{type(what).__name__}: {" ".join(str(what).split())[:300]}'
    before = [step for step in steps_in(checkpoint.parent) if step < int(checkpoint.name)]
    if before:
        earlier = checkpoint.parent / str(before[-1])
        advice = (f'The checkpoint before it is {earlier}: to resume from there, pass '
                  f'--config.init.resume_from={earlier} with a new --workdir.')
    else:
        advice = 'There is none before it.'
    return Damaged(f'the checkpoint {checkpoint} is damaged ({what}). {advice}')


def _stored_evaluations(folder: pathlib.Path) -> dict[int, dict[str, float]]:
    """The evaluations of all checkpoints, as process 0 reads them."""
    found = {}
    if jax.process_index() == 0:
        found = {step: _evaluation(folder / str(step)) for step in steps_in(folder)}
    # Processes that disagreed on the best checkpoint would not delete alike.
    return {int(step): values for step, values in of_first_process(found).items() if values}


def _evaluation(checkpoint: pathlib.Path) -> dict[str, float] | None:
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
    warn(f'{file} is damaged; the evaluation counts as not done.')
    return None
