"""Stored weights: a folder with the layout of a training run.

It holds config.json and checkpoints/<step>/. Converted weights are stored as a training state of
step 0 without optimizer state, so everything that reads a workdir reads them as well. A name such
as hf:timm/resnet50.a1_in1k stands for such a folder too, which is made when it is first needed.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax.data.classes import wordnet_names
from resnet_jax.errors import UserError, readable
from resnet_jax.output import say, warn, write_whole
from resnet_jax.storage import Path, check_reachable
from resnet_jax.weights import Weights, checkpoint, hub
from resnet_jax.weights import read as read_foreign
from resnet_jax.weights.checkpoint import FOLDER, read_weights
from resnet_jax.weights.checkpoints import Checkpoints
from resnet_jax.weights.digests import by_path
from resnet_jax.weights.files import check_finite

CLASSES_FILE = 'classes.txt'


def weights_state(variables: dict[str, Any], normalization: dict[str, Any]) -> dict[str, Any]:
    """The tree of a training state of step 0 that holds weights alone."""
    return {'step': np.int32(0), 'params': variables['params'],
            'batch_stats': variables.get('batch_stats', {}), 'opt_state': (), 'schedule_state': {},
            'ema': None, 'normalization': dict(normalization)}


def write(folder: Path, weights: Weights, classes: Sequence[str] | None = None) -> None:
    """Stores weights such that `read`, and every command, takes the folder for a finished run.

    Args:
      folder: made if it is not there.
      weights: see `resnet_jax.weights`.
      classes: the names of the classes in label order, written to classes.txt.

    Raises:
      UserError: the weights are not finite, or the folder holds checkpoints already or cannot be
        written to.
    """
    _check_finite(weights, 'the file of weights')
    check_reachable(folder)
    if any((folder / FOLDER).glob('*')):
        raise UserError(f'{folder} holds checkpoints already; choose another folder.')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(folder / FOLDER, keep_last=1)
        checkpoints.save(weights_state(weights.variables, weights.normalization), 0)
        checkpoints.close()
        if classes:
            write_classes(folder, classes)
        # Last, since a folder without it is taken for nothing.
        write_whole(folder / 'config.json', weights.config.to_json(indent=2) + '\n')
    except OSError as error:
        raise UserError(f'{folder} cannot be written to: {error.strerror or error}.') from error


def locate(path: Path) -> Path:
    """The checkpoint that a path means, see `checkpoint.locate`, or that of weights at the hub.

    Those are downloaded and converted where this has not been done; see `resnet_jax.weights.hub`.

    Raises:
      UserError: there is none, or it cannot be downloaded or converted.
    """
    return checkpoint.locate(_converted(path) if hub.is_name(path) else path)


def _converted(name: pathlib.Path) -> pathlib.Path:
    """The folder of the converted weights of a name; it is there whole or not at all."""
    folder = hub.converted(name)
    if folder is not None and folder.is_dir():
        return folder
    if jax.process_count() > 1:  # what is written from here would be written by all together
        raise UserError(f'{name} has not been converted on this machine yet, which a job of '
                        'several processes cannot do: run `python -m resnet_jax.convert '
                        f'--input={name} --output=DIR` first, and give DIR instead.')
    try:
        weights = read_foreign(name)
    except UserError as error:
        if str(error).startswith(str(name)):
            raise
        raise UserError(f'{name} cannot be used: {error}') from error
    say(weights.describe(), sys.stderr)
    folder = hub.converted(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(prefix='part-', dir=folder.parent))
    except OSError as error:
        raise UserError(f'{folder.parent} cannot be written to: {error.strerror}. Set '
                        'XDG_CACHE_HOME to a folder that can.') from error
    try:
        write(part, weights, weights.classes)
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has been faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def read(path: Path) -> Weights:
    """The weights of a run or of a conversion: the moving averages, where the run kept any.

    Args:
      path: a workdir, whose newest checkpoint is read; one checkpoint in it,
        `workdir/checkpoints/<step>`; or the name of weights at the hub.

    Raises:
      UserError: there is no checkpoint, it is damaged, or its weights are not finite.
    """
    found = locate(path)
    config = read_config(found.parent.parent)
    variables, normalization = read_weights(found)
    weights = Weights(config, variables, normalization,
                      f'step {found.name} of {found.parent.parent}')
    _check_finite(weights, f'the checkpoint {found}')
    return weights


def read_config(folder: Path) -> ConfigDict:
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


def warn_of_unknown(file: Path, unknown: Sequence[str]) -> None:
    """One line that names the fields of a config.json that are unknown today, if there are any."""
    if unknown:
        warn(f'{file} has fields that are unknown to this version and are ignored: '
             f'{", ".join(unknown)}.')


def config_of(path: Path) -> ConfigDict:
    """The config that is stored with the weights at a path; see `read`.

    Raises:
      UserError: there are no weights, or no config.
    """
    return read_config(locate(path).parent.parent)


def write_classes(folder: Path, names: Sequence[str]) -> None:
    """Stores the names of the classes in label order; those of WordNet ids, where they are ids."""
    lines = [' '.join(wordnet_names().get(name, name).splitlines()) + '\n' for name in names]
    write_whole(folder / CLASSES_FILE, readable(''.join(lines)))


def read_classes(path: Path, count: int) -> tuple[str, ...] | None:
    """The names of the classes that are stored with weights, if there are any.

    Args:
      path: of the weights.
      count: how many classes the network has.

    Raises:
      UserError: the file is damaged, or has names for another number of classes.
    """
    file = locate(path).parent.parent / CLASSES_FILE
    if not file.is_file():
        return None
    try:
        names = tuple(file.read_text(encoding='utf-8').splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{file} cannot be read as text ({error}).') from error
    if len(names) != count:
        raise UserError(f'classes.txt of {path} has {len(names)} names for {count} classes; '
                        'correct it, or delete it to use numbers as names.')
    return names


def _check_finite(weights: Weights, what: str) -> None:
    """Raises UserError where weights or the normalisation hold NaN or infinity."""
    check_finite(by_path({**weights.variables, 'normalization': dict(weights.normalization)}), what)
