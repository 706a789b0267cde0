"""Paths of files: folders of a file system, and buckets of Google Cloud Storage (gs://).

A path of a file system is a `pathlib.Path`, one in a bucket an `epath.Path`, which has the same
methods. An object of a bucket appears whole when its upload ends, and cannot be appended to.
"""

import functools
import io
import logging
import os
import pathlib
import time
from typing import Any

from etils import epath

from resnet_jax.errors import UserError

Path = pathlib.Path | epath.Path

BUCKETS = 'gs://'
UPLOAD_SECONDS = 30  # between two uploads of a file that grows
REACH_SECONDS = 20  # for which a bucket may be silent when it is first looked at
LEAST_REACH_SECONDS = 5  # of these for the bucket, however long the search for credentials took


def path_of(text: str | Path) -> Path:
    """The path that a flag or a field of the config names.

    Raises:
      UserError: it is a URL of another kind than gs://BUCKET/…, or the package for it is missing.
    """
    name = str(text)
    if name.startswith(BUCKETS):
        if not name.removeprefix(BUCKETS).strip('/'):
            raise UserError(f'{name} names no bucket; give gs://BUCKET/FOLDER.')
        _use_fsspec()
        return epath.Path(name)
    if '://' in name:
        raise UserError(f'{name} cannot be used: of URLs, only gs://BUCKET/FOLDER is supported.')
    return pathlib.Path(text)


def in_bucket(path: Path | str) -> bool:
    """Whether a path names objects of a bucket."""
    return str(path).startswith(BUCKETS)


def absolute(path: Path) -> Path:
    """The path from the root, as Orbax wants it."""
    return path if in_bucket(path) else path.absolute()


def check_reachable(path: Path) -> None:
    """Raises UserError if a path lies in a bucket that cannot be listed; other paths pass.

    Requests are repeated for REACH_SECONDS here, and for longer once the bucket was there.
    """
    if not in_bucket(path):
        return
    bucket, started = bucket_of(path), time.monotonic()
    try:
        files = file_system()  # which looks for credentials, perhaps on the network
        left = REACH_SECONDS - (time.monotonic() - started)
        files.ls(bucket, timeout=max(LEAST_REACH_SECONDS, left))
    except TimeoutError as error:  # fsspec's
        raise UserError(f'gs://{bucket} cannot be used: the storage service did not answer within '
                        f'{time.monotonic() - started:.0f} s; check the network, then run the '
                        'same command again.') from error
    except Exception as error:  # gcsfs, aiohttp and google.auth raise many kinds
        if isinstance(error, FileNotFoundError):
            raise UserError(f'there is no bucket gs://{bucket}; create it with `gcloud storage '
                            f'buckets create gs://{bucket}`, or correct the name.') from error
        raise UserError(f'gs://{bucket} cannot be used: {problem(error) or error}.') from error


def bucket_of(path: Path | str) -> str:
    """The name of the bucket of a path in one."""
    return str(path).removeprefix(BUCKETS).split('/')[0]


def file_system() -> Any:
    """gcsfs' file system, which retries what fails for a moment; also for `epath.Path`."""
    _use_fsspec()
    return epath.backend.fsspec_backend.fs(BUCKETS)


def upload(folder: pathlib.Path, target: Path) -> None:
    """Copies all files below a folder to a path in a bucket."""
    for file in folder.rglob('*'):
        if file.is_file():
            (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def problem(error: BaseException | None) -> str | None:
    """What a person can do about an error of a bucket; None if it is an error of another kind."""
    while error is not None:
        text, code = f'{type(error).__name__}: {error}', str(getattr(error, 'code', ''))
        if 'Forbidden' in text or 'PERMISSION_DENIED' in text or code in ('401', '403'):
            return ('access is denied; run `gcloud auth application-default login`, or give the '
                    'account of this machine the role Storage Object User')
        if type(error).__module__.startswith('google.auth'):
            return 'there are no valid credentials; run `gcloud auth application-default login`'
        if code.startswith(('5', '429')) or 'UNAVAILABLE' in text or _of_connection(error):
            return ('the storage service did not answer in spite of repeated attempts '
                    f'({" ".join(text.split())[:120]})')
        if type(error).__module__.startswith('gcsfs'):
            return f'the storage service refused a request ({" ".join(text.split())[:120]})'
        error = error.__cause__ or error.__context__
    return None


def _of_connection(error: BaseException) -> bool:
    return type(error).__module__.split('.')[0] in ('aiohttp', 'requests') or isinstance(
        error, ConnectionError | TimeoutError)


@functools.cache
def _use_fsspec() -> None:
    """Prepares fsspec, once: listings are never cached, since other processes write too.

    gcsfs' experimental support of hierarchical buckets, which asks for the kind of every bucket and
    warns where it may not, is not needed, nor are the tracebacks that it logs of errors that it
    raises.

    Raises:
      UserError: gcsfs is not installed.
    """
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError('paths in buckets need the package gcsfs: pip install gcsfs '
                        f'({error}).') from error
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
    fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


class Growing:
    """A file that is written piece by piece.

    In a file system, what was written is there after `flush`. In a bucket the whole object is
    written again, by `flush` at most every `UPLOAD_SECONDS`, and in any case by `sync` and `close`.
    """

    def __init__(self, path: Path, content: bytes = b''):
        """Opens the file to append to it.

        Args:
          path: its folder must exist.
          content: what it holds already; only read for a bucket.
        """
        self._path, self._in_bucket = path, in_bucket(path)
        self._file = io.BytesIO() if self._in_bucket else path.open('ab')
        if self._in_bucket:
            self._file.write(content)
        self._uploaded, self._changed = time.monotonic(), False

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._changed = True

    def flush(self) -> None:
        if not self._in_bucket:
            self._file.flush()
        elif time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Writes what has not been written; it is there when this returns."""
        if not self._in_bucket:
            self._file.flush()
        elif self._changed:
            self._path.write_bytes(self._file.getvalue())
            self._uploaded, self._changed = time.monotonic(), False

    def close(self) -> None:
        """Writes the rest, and closes the file."""
        self.sync()
        self._file.close()
