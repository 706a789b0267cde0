"""Turns errors of disks and buckets, also from background writes, into one-line errors."""

import contextlib
import errno
import gc
import logging
import os
import pathlib
import traceback
from collections.abc import Iterator

from resnet_jax import storage
from resnet_jax.errors import UserError
from resnet_jax.weights.checkpoint import quiet_ends, steps_in

# Errors that a user can fix, and how.
REMEDIES = {errno.ENOSPC: 'Make space', errno.EDQUOT: 'Make space',
            errno.EROFS: 'Make it writable', errno.EACCES: 'Make it writable'}


@contextlib.contextmanager
def errors_of(workdir: storage.Path) -> Iterator[None]:
    """Turns a failure to write to a run's folder into a one-line error.

    Args:
      workdir: of a run.

    Raises:
      UserError: the disk is full, or the folder or bucket cannot be written to.
    """
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_is_news)
    number = of_bucket = None
    try:
        with quiet_ends():
            yield
    except UserError:
        raise
    except Exception as error:
        if storage.in_bucket(workdir):
            of_bucket = storage.problem(error)
        else:
            number = _number(error, workdir)
        if number is None and of_bucket is None:
            raise
    if of_bucket is not None:
        gc.collect()
        raise UserError(f'{workdir} cannot be written to: {of_bucket}. Run the same command again '
                        'to resume.')
    if number is not None:
        # Collects the other failed tasks now; at exit, asyncio would print their errors.
        gc.collect()
        raise UserError(f'{workdir} cannot be written to: {os.strerror(number)}. {_saved(workdir)} '
                        f'{REMEDIES[number]}, and run the same command again to resume.')


def _number(error: BaseException | None, workdir: storage.Path) -> int | None:
    """The errno of a problem with the disk; None if the error is another one."""
    while error is not None:
        if isinstance(error, OSError):
            # Errors of other files, such as the data's, are reported where they occur.
            elsewhere = error.filename is not None and not (
                pathlib.Path(os.fsdecode(error.filename)).absolute().is_relative_to(
                    workdir.absolute()))
            if error.errno in REMEDIES and not elsewhere:
                return error.errno
        else:  # tensorstore has no exception types for this
            for number in REMEDIES:
                if os.strerror(number) in str(error) and str(workdir) in str(error):
                    return number
        error = error.__cause__ or error.__context__
    return None


def _saved(workdir: storage.Path) -> str:
    steps = steps_in(workdir / 'checkpoints')
    return f'Nothing up to step {steps[-1]} is lost.' if steps else 'No checkpoint was written yet.'


def _is_news(record: logging.LogRecord) -> bool:
    """False for log records of errors that Orbax also raises.

    If several tasks fail together, it raises one of their errors, and asyncio logs the others when
    they are collected.
    """
    if not record.exc_info or record.exc_info[2] is None:
        return True
    frames = traceback.walk_tb(record.exc_info[2])
    return not any(f'{os.sep}orbax{os.sep}' in frame.f_code.co_filename for frame, _ in frames)
