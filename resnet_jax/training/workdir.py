"""The workdir of a run: its lock, its stored config and data description, and its files."""

import contextlib
import errno
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import data, storage
from resnet_jax.distributed.processes import of_first_process
from resnet_jax.errors import UserError
from resnet_jax.output import say, warn, write_whole
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.writers import MetricsWriter, is_evaluation, rows_of_first_process
from resnet_jax.weights import hub
from resnet_jax.weights.checkpoint import Damaged, locate, steps_in
from resnet_jax.weights.checkpoints import Checkpoints
from resnet_jax.weights.stored import locate as locate_weights
from resnet_jax.weights.stored import read_config, warn_of_unknown, write_classes

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

# File systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def check_path(workdir: storage.Path) -> None:
    """Raises UserError if a path cannot be the folder of a run."""
    if not storage.in_bucket(workdir) and ':/' in str(workdir):
        raise UserError(f'--workdir must be a folder of a file system or gs://BUCKET/FOLDER, got '
                        f'{workdir}.')
    storage.check_reachable(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir={workdir} is a file, not a folder.')


def check_origin(config: ConfigDict, workdir: storage.Path) -> None:
    """Raises UserError if a new run does not find the weights that `config.init` starts from."""
    init = config.init
    if _has_checkpoints(workdir):
        return
    if init.resume_from:
        locate(storage.path_of(init.resume_from))
    elif init.checkpoint:
        try:
            locate_weights(storage.path_of(init.checkpoint))
        except UserError as error:
            if hub.is_name(init.checkpoint):
                raise
            raise UserError(
                f'init.checkpoint={init.checkpoint} cannot be read: {str(error).rstrip(".")}; make '
                'these weights first, with the commands at the top of the config file, or pass '
                "--config.init.checkpoint='' to start from random ones.") from error
    elif init.freeze_bn:
        raise UserError(
            'init.freeze_bn=True keeps the statistics of trained weights, and there are none: pass '
            '--config.init.checkpoint=DIR, a workdir, or the output of `python -m '
            'resnet_jax.convert` for published weights.')


def make(workdir: storage.Path) -> None:
    """Makes the folder where it is missing.

    Raises:
      UserError: it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot create --workdir={workdir}: {error.strerror}.') from error


@contextlib.contextmanager
def locked(workdir: storage.Path) -> Iterator[None]:
    """Keeps other runs out of a folder, where its file system has locks; a bucket has none.

    Process 0 holds the lock; the system releases it when the process ends, however it ends.

    Raises:
      UserError: another run is at work in it.
    """
    if fcntl is None or storage.in_bucket(workdir) or jax.process_index() != 0:
        yield
        return
    with (workdir / '.lock').open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or 'another process'
            raise UserError(f'{workdir} is in use by {owner}; wait for it, or use another '
                            '--workdir.') from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            file.flush()
        yield


def check_config(config: ConfigDict, workdir: storage.Path) -> None:
    """Checks that any checkpoints in the folder belong to the same run.

    Raises:
      UserError: they were made from another config, or it is not known from which.
    """
    if not _has_checkpoints(workdir):
        return
    path = workdir / 'config.json'
    stored = config_lib.leaves(ConfigDict(_stored(path)))
    changed = config_lib.differences(config, stored)
    if changed:
        raise UserError(f'{workdir} was trained with a different config ({"; ".join(changed)}). '
                        'Use another --workdir, or the original config to resume.')
    warn_of_unknown(path, config_lib.upgrade(stored)[1])


def begun(config: ConfigDict, workdir: storage.Path) -> ConfigDict | None:
    """The config that a run with `num_epochs` began with, here or, of a fork, at its origin."""
    if config.num_epochs is None:
        return None
    if _has_checkpoints(workdir):
        return read_config(workdir)
    origin = config.init.resume_from
    return read_config(locate(storage.path_of(origin)).parent.parent) if origin else None


def check_data(program: Program, workdir: storage.Path) -> None:
    """Checks that any checkpoints in the folder were made from the same data.

    Raises:
      UserError: the data has changed, or it is not known from which they were made.
    """
    if not _has_checkpoints(workdir):
        return
    fingerprints = _stored(workdir / 'data.json')
    for name, source in _sources(program).items():
        if name not in fingerprints:
            raise UserError(f'{workdir / "data.json"} does not describe {name}; use another '
                            '--workdir.')
        data.check_unchanged(fingerprints[name], source, name)


def describe(program: Program, workdir: storage.Path) -> None:
    """Writes to the folder what its checkpoints are made from."""
    if jax.process_index() == 0:
        write_whole(workdir / 'config.json', program.config.to_json(indent=2) + '\n')
        write_whole(workdir / 'data.json', json.dumps(
            {name: source.fingerprint for name, source in _sources(program).items()},
            indent=2) + '\n')
        if names := getattr(program.train_data.source, 'class_names', ()):
            write_classes(workdir, names)


def _sources(program: Program) -> dict[str, data.Source]:
    return {'the training data': program.train_data.source,
            'the evaluation data': program.eval_data.source}


def _has_checkpoints(workdir: storage.Path) -> bool:
    return bool(steps_in(workdir / 'checkpoints'))


def _stored(path: storage.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError('not a JSON object')
    except (OSError, ValueError) as error:
        raise UserError(f'{path.parent} contains checkpoints but no readable {path.name} '
                        f'({error}); use another --workdir.') from error
    return content


class Record:
    """What a run leaves in its folder: checkpoints with their evaluations, and measurements.

    In a job of several processes all of them call every method, at the same steps; what is there at
    the start is decided by what process 0 finds.

    Attributes:
      start_step: of the checkpoint that the run resumes from, or 0.
      recalibrated: running statistics that an earlier start stored for the last evaluation, or
        None.
      evaluations: values under their TensorBoard tags, by step.
    """

    def __init__(self, program: Program, workdir: storage.Path):
        """Opens the folder.

        Raises:
          UserError: the folder holds a run that is further than `num_steps`.
        """
        config = program.config
        self._rank = program.task.headline.rank
        rows = rows_of_first_process(workdir)
        self._checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.keep_last,
                                        self._rank if config.checkpoint.keep_best else None)
        if config.init.resume_from and not self._checkpoints.steps:
            self._fork(program)
        found = of_first_process({
            'step': self._checkpoints.latest_step or 0, 'stored': self._checkpoints.evaluations,
            'logged': self._only_logged(rows)})
        self.start_step = found['step']
        if self.start_step > config.num_steps:
            raise UserError(f'{workdir} is already at step {self.start_step}, beyond num_steps='
                            f'{config.num_steps}.')
        for step, values in found['logged']:
            if step in self._checkpoints.steps:
                self._checkpoints.write_evaluation(step, values)
        self.evaluations = {int(step): values for step, values in found['stored'].items()}
        self.evaluations |= dict(found['logged'])
        self.recalibrated = None
        if config.eval.recalibrate_batches and self.start_step == config.num_steps:
            self.recalibrated = self._read_recalibrated(program)
            if self.recalibrated is None:  # it was evaluated, if at all, without them
                self.evaluations.pop(self.start_step, None)
        self._writer = MetricsWriter(workdir, rows, self.start_step, self.evaluations)

    def _fork(self, program: Program) -> None:
        """Starts from a checkpoint of another run, as if it were the latest of this one."""
        origin = locate(storage.path_of(program.config.init.resume_from))
        if int(origin.name) > program.config.num_steps:
            raise UserError(f'init.resume_from={origin} is beyond num_steps='
                            f'{program.config.num_steps}.')
        step = self._checkpoints.adopt(origin, program.state)
        say(f'starting from step {step} of {origin.parent.parent}, with its optimizer state')

    def _only_logged(
            self, rows: Sequence[Mapping[str, float | None]]) -> list[tuple[int, dict]]:
        """Evaluations of checkpoints that were written without them; the best one comes first.

        Storing an evaluation deletes checkpoints: of those that are not the best, all but the
        newest.
        """
        known, steps = self._checkpoints.evaluations, self._checkpoints.steps
        found = {int(row['step']): {tag: math.nan if value is None else value
                               for tag, value in row.items() if tag != 'step'}
                 for row in rows if is_evaluation(row) and row['step'] in steps
                 and row['step'] not in known}
        ranks = {step: self._rank(values) for step, values in found.items()}
        return sorted(found.items(), key=lambda item: (
            math.inf if (rank := ranks[item[0]]) is None else rank))

    def _read_recalibrated(self, program: Program) -> Any | None:
        try:
            found = self._checkpoints.read_recalibrated(
                self.start_step, program.state.batch_stats)
        except Damaged:
            warn(f'the recalibrated statistics of step {self.start_step} are damaged, and are '
                 'computed again.')
            found = None
        if jax.process_count() > 1 and not multihost_utils.process_allgather(
                np.array(found is not None)).all():
            return None
        return found

    @property
    def written_step(self) -> int | None:
        """The step of the latest checkpoint that is completely on disk, if there is one."""
        return self._checkpoints.written_step

    def restore(self, like: Any) -> TrainState:
        """The state of `start_step`, onto the shardings of a tree of `jax.ShapeDtypeStruct`."""
        return self._checkpoints.restore(like, self.start_step)

    def save(self, state: TrainState, step: int) -> None:
        """Saves a state in the background; nothing is done where this step has been saved.

        The rows up to this step are written first: a run that resumes from it writes no others.
        """
        self._writer.sync()
        self._checkpoints.save(state, step)

    def wait(self) -> None:
        """Waits until the last checkpoint is completely written."""
        self._checkpoints.wait()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row of measurements."""
        self._writer.write(step, values)

    def write_recalibrated(self, step: int, batch_stats: Any) -> None:
        """Stores the statistics that a saved state is evaluated with."""
        self._checkpoints.write_recalibrated(step, batch_stats)

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Stores what the evaluation of a saved state measured, and logs it."""
        self._checkpoints.write_evaluation(step, values)
        self.evaluations[step] = dict(values)
        self.log(step, values)

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._checkpoints.close()
        finally:
            self._writer.close()
