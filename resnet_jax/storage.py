"""Paths of files: folders of a file system, and buckets of Google Cloud Storage (gs://) and S3.

From S3 (s3://), data is read; Orbax keeps checkpoints in folders and gs:// only. A path of a file
system is a `pathlib.Path`, one in a bucket an `epath.Path`, which has the same methods. An object
of a bucket appears whole when its upload ends, and cannot be appended to.
"""

import functools
import importlib
import io
import logging
import os
import pathlib
import time
from typing import Any

from etils import epath

from resnet_jax.errors import UserError

Path = pathlib.Path | epath.Path

GS, S3 = 'gs://', 's3://'
PACKAGES = {GS: 'gcsfs', S3: 's3fs'}  # that fsspec needs
CREATE = {GS: 'gcloud storage buckets create gs://', S3: 'aws s3 mb s3://'}
LOG_IN = {GS: 'gcloud auth application-default login', S3: 'aws configure'}
UPLOAD_SECONDS = 30  # between two uploads of a file that grows
REACH_SECONDS = 20  # for which a bucket may be silent when it is first looked at
LEAST_REACH_SECONDS = 5  # of these for the bucket, however long the search for credentials took


def path_of(text: str | Path, of_data: bool = False) -> Path:
    """The path that a flag or a field of the config names.

    Args:
      text: the path, or gs://BUCKET/….
      of_data: whether it is read as data, which may lie in s3://BUCKET/… too.

    Raises:
      UserError: it is a URL of another kind, or the package for it is missing.
    """
    name = str(text)
    if name.startswith(S3) and not of_data:
        raise UserError(f'{name} cannot be used: only shards (data.path) and class lists are read '
                        'from S3, because Orbax stores checkpoints in folders and gs:// only; use '
                        'a folder, and copy it with `aws s3 sync`.')
    if in_bucket(name):
        scheme = _scheme(name)
        if not name.removeprefix(scheme).strip('/'):
            raise UserError(f'{name} names no bucket; give {scheme}BUCKET/FOLDER.')
        _use_fsspec(scheme)
        return epath.Path(name)
    if '://' in name:
        raise UserError(f'{name} cannot be used: of URLs, only gs://BUCKET/FOLDER is supported, '
                        'and s3://BUCKET/FOLDER for data.path.')
    return pathlib.Path(text)


def in_bucket(path: Path | str) -> bool:
    """Whether a path names objects of a bucket."""
    return str(path).startswith((GS, S3))


def absolute(path: Path) -> Path:
    """The path from the root, as Orbax wants it."""
    return path if in_bucket(path) else path.absolute()


def check_reachable(path: Path) -> None:
    """Raises UserError if a path in a bucket cannot be listed; other paths pass.

    One object at most is asked for, below the path: a bucket may hold millions, and access may be
    limited to a folder. Requests are repeated for REACH_SECONDS here, and for longer once the
    bucket was there.
    """
    if not in_bucket(path):
        return
    scheme, started = _scheme(path), time.monotonic()
    bucket, _, folder = str(path).removeprefix(scheme).partition('/')
    prefix = f'{folder.strip("/")}/'.lstrip('/')
    try:
        files = file_system(path)  # which looks for credentials, perhaps on the network
        timeout = max(LEAST_REACH_SECONDS, REACH_SECONDS - (time.monotonic() - started))
        if scheme == GS:
            files.call('GET', 'b/{}/o', bucket, prefix=prefix, maxResults=1, timeout=timeout)
        else:
            files.call_s3('list_objects_v2', Bucket=bucket, Prefix=prefix, MaxKeys=1,
                          timeout=timeout)
    except TimeoutError as error:  # fsspec's
        raise UserError(f'{scheme}{bucket} cannot be used: the storage service did not answer '
                        f'within {time.monotonic() - started:.0f} s; check the network, then run '
                        'the same command again.') from error
    except Exception as error:  # gcsfs, s3fs and what they use raise many kinds
        if isinstance(error, FileNotFoundError):
            raise UserError(f'there is no bucket {scheme}{bucket}; create it with '
                            f'`{CREATE[scheme]}{bucket}`, or correct the name.') from error
        raise UserError(f'{scheme}{bucket} cannot be used: {problem(error) or error}.') from error


def check_not_in_bucket(path: str) -> None:
    """Raises UserError if `data.path` of a source other than shards names a bucket."""
    if in_bucket(path):
        raise UserError(f'{path} is in a bucket, from which only shards are read; write them with '
                        '`python -m resnet_jax.data.prepare` from a folder of this machine, copy '
                        'them to the bucket and set data.source to shards.')


def file_system(path: Path | str) -> Any:
    """The file system of a path in a bucket, which retries what fails for a moment.

    It is that of gcsfs or s3fs, and that of `epath.Path`.
    """
    _use_fsspec(_scheme(path))
    return epath.backend.fsspec_backend.fs(str(path))


def upload(folder: pathlib.Path, target: Path) -> None:
    """Copies all files below a folder to a path in a bucket."""
    for file in folder.rglob('*'):
        if file.is_file():
            (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def problem(error: BaseException | None) -> str | None:
    """What a person can do about an error of a bucket; None if it is an error of another kind."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for error in chain:
        if type(error).__module__.startswith('botocore'):  # below that of s3fs
            return _problem_of_s3(error)
    for error in chain:
        text, code = f'{type(error).__name__}: {error}', str(getattr(error, 'code', ''))
        if 'Forbidden' in text or 'PERMISSION_DENIED' in text or code in ('401', '403'):
            return (f'access is denied; run `{LOG_IN[GS]}`, or give the account of this machine '
                    'the role Storage Object User')
        if type(error).__module__.startswith('google.auth'):
            return f'there are no valid credentials; run `{LOG_IN[GS]}`'
        if code.startswith(('5', '429')) or 'UNAVAILABLE' in text or _of_connection(error):
            return _no_answer(error)
        if type(error).__module__.startswith('gcsfs'):
            return _refused(error)
    return None


def _problem_of_s3(error: BaseException) -> str:
    response = getattr(error, 'response', None) or {}  # None where none came
    status = response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
    if 'Credentials' in type(error).__name__:
        return f'there are no valid credentials; run `{LOG_IN[S3]}`'
    if status in (401, 403):
        return (f'access is denied; run `{LOG_IN[S3]}`, or give this machine a role with '
                's3:ListBucket and s3:GetObject')
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if status >= 500 or kinds & {'ConnectionError', 'HTTPClientError'}:
        return _no_answer(error)
    # Without a response, it is the settings that are wrong, such as a profile that is missing.
    return _refused(error) if response else f'no request could be made ({_start(error)})'


def _no_answer(error: BaseException) -> str:
    return (f'the storage service did not answer in spite of repeated attempts ({_start(error)}); '
            'check the network, or try again later')


def _refused(error: BaseException) -> str:
    return f'the storage service refused a request ({_start(error)})'


def _start(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:120]


def _of_connection(error: BaseException) -> bool:
    return type(error).__module__.split('.')[0] in ('aiohttp', 'requests') or isinstance(
        error, ConnectionError | TimeoutError)


def _scheme(path: Path | str) -> str:
    return next(scheme for scheme in (GS, S3) if str(path).startswith(scheme))


@functools.cache
def _use_fsspec(scheme: str) -> None:
    """Prepares fsspec, once: listings are never cached, since other processes write too.

    gcsfs' experimental support of hierarchical buckets, which asks for the kind of every bucket and
    warns where it may not, is not needed, nor are the tracebacks that it logs of errors that it
    raises.

    Args:
      scheme: GS or S3.

    Raises:
      UserError: gcsfs or s3fs is not installed.
    """
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    package = PACKAGES[scheme]
    try:
        import fsspec
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(f'paths in {scheme} need the package {package}: pip install {package} '
                        f'({error}).') from error
    logging.getLogger(package).setLevel(logging.CRITICAL)
    for name in fsspec.get_filesystem_class(scheme.partition(':')[0]).protocol:
        fsspec.config.conf.setdefault(name, {}).setdefault('use_listings_cache', False)


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
