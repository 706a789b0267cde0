"""The layout of one checkpoint on disk, and reading it back with verification.

This module alone knows the layout:

  checkpoints/<step>/default/           the training state
  checkpoints/<step>/_CHECKPOINT_METADATA   Orbax metadata, with the digests of the state
  checkpoints/<step>/recalibrated/      running statistics for evaluation, with their digests
  checkpoints/<step>/evaluation.json    results of the evaluation of the state

Arrays that an older version wrote under other names are verified under these, and come back under
today's; see `resnet_jax.weights.renames`.

The last two are written after the state, atomically, and deleted with it.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.errors import UserError
from resnet_jax.storage import Path, absolute, check_reachable, in_bucket
from resnet_jax.weights.digests import by_path, checksum, description, digests
from resnet_jax.weights.renames import current_path, current_tree

FOLDER = 'checkpoints'  # in the workdir
STATE, RECALIBRATED, EVALUATION = 'default', 'recalibrated', 'evaluation.json'
METADATA = '_CHECKPOINT_METADATA'  # Orbax's, beside the arrays or in the folder above
COMMITTED = 'commit_success.txt'  # what Orbax writes last to a folder of a bucket
LISTED = 4  # arrays that an error names


class Damaged(UserError):  # noqa: N818
    """The files of a checkpoint are not what was written."""


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, in ascending order."""
    if in_bucket(folder):
        return sorted(int(path.parent.name) for path in folder.glob(f'*/{COMMITTED}')
                      if path.parent.name.isdigit())
    return sorted(int(path.name) for path in folder.glob('*')
                  if path.name.isdigit() and path.is_dir())


def is_complete(folder: Path) -> bool:
    """Whether a folder that Orbax writes is there and has been written to its end."""
    return (folder / COMMITTED).exists() if in_bucket(folder) else folder.is_dir()


def locate(path: Path) -> Path:
    """The folder of the checkpoint that a path means: one of a run, or the newest of a workdir.

    Raises:
      UserError: there is none.
    """
    check_reachable(path)
    path = path.expanduser()
    if path.parent.name == FOLDER and path.name.isdigit() and is_complete(path):
        return path
    if not in_bucket(path) and path.is_file():
        raise UserError(f'{path} is a file; if it holds weights, `python -m resnet_jax.convert '
                        f'--input={path} --output=DIR` makes the folder to give here.')
    if not path.is_dir():
        # Perhaps a name of the hub without hf:, but not where runs/ is and runs/NAME is not.
        perhaps = not path.is_absolute() and (
            len(path.parts) == 1 or (len(path.parts) == 2 and not path.parent.exists()))
        hint = '; weights of the Hugging Face hub are named hf:OWNER/NAME' if perhaps else ''
        raise UserError(f'there is no folder {path}{hint}.')
    steps = steps_in(path / FOLDER)
    if not steps:
        raise UserError(f'{path} holds no checkpoints; a folder of weights is a workdir of '
                        'resnet_jax.main or was written by resnet_jax.convert.')
    return path / FOLDER / str(steps[-1])


def restore(checkpoint: Path, like: Any) -> Any:
    """The training state of a checkpoint, verified.

    Args:
      checkpoint: its folder.
      like: a tree of `jax.ShapeDtypeStruct` with the shardings to restore to; the mesh may
        be another than the one that the checkpoint was written on.

    Raises:
      UserError: the checkpoint holds another kind of state.
      Damaged: its files are not what was written.
    """
    return restore_item(checkpoint, STATE, like)


def read_weights(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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
    if is_complete(checkpoint / RECALIBRATED):
        recalibrated = _read(checkpoint, RECALIBRATED, _tree(checkpoint, RECALIBRATED))
        variables = {**variables, 'batch_stats': recalibrated}
    return current_tree(variables), normalization


def restore_item(checkpoint: Path, item: str, like: Any) -> Any:
    """An item of a checkpoint, verified and laid out like a tree of `jax.ShapeDtypeStruct`.

    Every process reads all of it: nothing but the arrays is needed then, and whatever goes wrong
    on the devices does not concern the files.
    """
    tree = _tree(checkpoint, item)
    _check_fits(checkpoint, item, like, tree)
    arrays = {current_path(name): array
              for name, array in by_path(_read(checkpoint, item, tree)).items()}
    placed = [jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
              for name, leaf in by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _tree(checkpoint: Path, item: str) -> dict[str, Any]:
    """The shapes and dtypes of an item, as Orbax describes them; they are those of the digests."""
    try:
        with quiet_ends():
            tree = ocp.PyTreeCheckpointHandler().metadata(absolute(checkpoint / item)).tree
    except Exception as error:  # tensorstore, Orbax and json raise many kinds
        raise _damaged(checkpoint, error) from error
    stored = stored_digests(checkpoint, item)
    if stored is not None and stored.keys() != by_path(tree).keys():
        raise _damaged(checkpoint, 'its description lists other arrays than were written')
    return tree


def _read(checkpoint: Path, item: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Parts of an item as numpy arrays, whatever devices they were saved from, verified."""
    stored = stored_digests(checkpoint, item)
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    try:
        with quiet_ends():
            tree = ocp.PyTreeCheckpointHandler().restore(
                absolute(checkpoint / item), args=ocp.args.PyTreeRestore(
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


def _check_fits(checkpoint: Path, item: str, like: Any, tree: Any) -> None:
    """Raises UserError where a checkpoint holds other arrays than are asked for.

    Args:
      checkpoint, item: which.
      like: what is asked for.
      tree: see `_tree`; where there are digests, shapes and dtypes are taken from them.
    """
    stored = stored_digests(checkpoint, item)
    if stored is None:
        held = {name: description(leaf) for name, leaf in by_path(tree).items()}
    else:
        held = {name: digest.partition(' ')[0] for name, digest in stored.items()}
    held = {current_path(name): leaf for name, leaf in held.items()}
    needed = {name: description(leaf) for name, leaf in by_path(like).items()}
    other = [name for name in {**needed, **held} if needed.get(name) != held.get(name)]
    if other:
        listed = ', '.join(f'{name} ({held.get(name, "missing")}, needed '
                           f'{needed.get(name, "none")})' for name in other[:LISTED])
        raise UserError(f'{checkpoint} does not fit the network and the optimizer of this config: '
                        f'{len(other)} arrays differ, among them {listed}.')


def sealed(values: dict[str, str]) -> dict[str, Any]:
    return {'digests': values, 'checksum': checksum(values)}


def stored_digests(checkpoint: Path, item: str) -> dict[str, str] | None:
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


def _verify(checkpoint: Path, tree: Any, stored: dict[str, str] | None) -> None:
    """Raises Damaged where an array is not what was stored; a tree may be a part of the item."""
    if stored is None:
        return
    changed = [name for name, digest in digests(tree).items() if stored.get(name) != digest]
    if changed:
        raise _damaged(checkpoint, 'not as they were written: ' + ', '.join(changed[:LISTED])
                       + (f' and {len(changed) - LISTED} more' if len(changed) > LISTED else ''))


def _damaged(checkpoint: Path, what: Exception | str) -> Damaged:
    """The sentence: what is wrong with which checkpoint, and what to do."""
    if isinstance(what, Exception):
        what = f'{type(what).__name__}: {" ".join(str(what).split())[:300]}'
    before = [step for step in steps_in(checkpoint.parent) if step < int(checkpoint.name)]
    if before:
        earlier = checkpoint.parent / str(before[-1])
        advice = (f'The checkpoint before it is {earlier}: to resume from there, pass '
                  f'--config.init.resume_from={earlier} with a new --workdir.')
    else:
        advice = 'There is no earlier one.'
    return Damaged(f'the checkpoint {checkpoint} is damaged ({what}). {advice}')
