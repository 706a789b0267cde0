"""Weights on disk, in the one form that there is: a folder such as a training run leaves.

It holds config.json and checkpoints/<step>/. Whatever reads a run's workdir reads converted weights
as well; those are a training state of step 0, without an optimizer's.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax.checkpoint import Checkpoints, read_weights, steps_in
from resnet_jax.errors import UserError
from resnet_jax.state import TrainState
from resnet_jax.weights import Weights
from resnet_jax.writers import warn, write_whole

CLASSES_FILE = 'classes.txt'


def weights_state(variables: dict[str, Any], normalization: dict[str, Any]) -> TrainState:
    """A training state of step 0 that holds weights alone."""
    return TrainState(
        step=np.int32(0), params=variables['params'],
        batch_stats=variables.get('batch_stats', {}), opt_state=(), schedule_state={}, ema=None,
        normalization=dict(normalization))


def write(folder: pathlib.Path, weights: Weights, classes: list[str] | None = None) -> None:
    """Stores weights such that `read`, and every command, takes the folder for a finished run.

    Args:
      folder: made if it is not there.
      weights: see `resnet_jax.weights`.
      classes: the names of the classes in label order, written to classes.txt.

    Raises:
      UserError: the folder holds checkpoints already, or cannot be written to.
    """
    if any((folder / 'checkpoints').glob('*')):
        raise UserError(f'{folder} holds checkpoints already; choose another folder.')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(folder / 'checkpoints', keep_last=1)
        checkpoints.save(weights_state(weights.variables, weights.normalization), 0)
        checkpoints.close()
        if classes:
            write_whole(folder / CLASSES_FILE, ''.join(f'{name}\n' for name in classes))
        # Last, since a folder without it is taken for nothing.
        write_whole(folder / 'config.json', weights.config.to_json(indent=2) + '\n')
    except OSError as error:
        raise UserError(f'{folder} cannot be written to: {error.strerror or error}.') from error


def read(path: pathlib.Path) -> Weights:
    """The weights of a run or of a conversion: the moving averages, where the run kept any.

    Args:
      path: a workdir, whose newest checkpoint is read, or one checkpoint in it,
        `workdir/checkpoints/<step>`.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    path = path.expanduser()
    folder, step = _locate(path)
    config = read_config(folder)
    variables, normalization = read_weights(folder / 'checkpoints' / str(step))
    return Weights(config, variables, normalization, f'step {step} of {folder}')


def read_config(folder: pathlib.Path) -> ConfigDict:
    """The config that a workdir's config.json holds, of whatever time; see `config.upgrade`.

    A warning names fields that are unknown today.

    Raises:
      UserError: the file is missing or damaged.
    """
    file = folder / 'config.json'
    try:
        config, unknown = config_lib.from_stored(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f'{file} cannot be read ({error}); a folder of weights is a workdir of '
                        'resnet_jax.main or was written by resnet_jax.convert.') from error
    warn_of_unknown(file, unknown)
    return config


def warn_of_unknown(file: pathlib.Path, unknown: Sequence[str]) -> None:
    """One line that names the fields of a config.json that are unknown today, if there are any."""
    if unknown:
        warn(f'{file} has fields that are unknown to this version and are ignored: '
             f'{", ".join(unknown)}.')


def read_classes(path: pathlib.Path) -> list[str] | None:
    """The names of the classes that are stored with weights, if there are any."""
    file = _locate(path.expanduser())[0] / CLASSES_FILE
    return file.read_text().splitlines() if file.is_file() else None


def _locate(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """The workdir, and the step of the checkpoint that a path means."""
    if path.parent.name == 'checkpoints' and path.name.isdigit() and path.is_dir():
        return path.parent.parent, int(path.name)
    if not path.is_dir():
        raise UserError(f'there is no folder {path}.')
    steps = steps_in(path / 'checkpoints')
    if not steps:
        raise UserError(f'{path} holds no checkpoints; a folder of weights is a workdir of '
                        'resnet_jax.main or was written by resnet_jax.convert.')
    return path, steps[-1]
