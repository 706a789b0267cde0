"""Shards of a bucket, fetched to the local disk as they are first needed, and kept there.

Images are read in random order, so nearly every shard is needed within the first steps of a run. A
shard is fetched by the thread that first reads from it, whole; the threads that decode run ahead of
the training step. Processes on one machine share the cache.

`data.bucket_cache_bytes` is never exceeded: what is too large for it is refused, and other datasets
that no process reads are deleted to make room.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resnet_jax import storage
from resnet_jax.data.sources import digest
from resnet_jax.errors import UserError

READ_AT_ONCE = 64  # records
IN_USE = '.in_use'  # locked by the processes that read a dataset
ADVICE = 'upload it again from the output of `python -m resnet_jax.data.prepare`'


class ShardCache:
    """The local copies of the shards of one split in a bucket."""

    def __init__(self, folder: storage.Path, shards: Sequence[Mapping[str, Any]], cache: str,
                 most_bytes: int):
        """Compares the sizes of the shards in the bucket, and makes room for them.

        Args:
          folder: in the bucket.
          shards: their descriptions; see `resnet_jax.data.shard_writer.write_shard`.
          cache: `data.cache`.
          most_bytes: `data.bucket_cache_bytes`, for all datasets together.

        Raises:
          UserError: a shard is missing or has another size, or they are larger than the cache.
        """
        if not cache:
            raise UserError(f'{folder} lies in a bucket, whose shards are copied to data.cache; '
                            'data.cache is empty: give it a folder of a local disk.')
        sizes = {item['name'].rpartition('/')[2]: item['size']
                 for item in storage.file_system(folder).ls(str(folder), detail=True)}
        for shard in shards:
            if sizes.get(shard['name'], 0) != shard['bytes']:
                raise UserError(f'{folder / shard["name"]} has {sizes.get(shard["name"], 0)} bytes '
                                f'instead of {shard["bytes"]}: it was truncated or replaced; '
                                f'{ADVICE}.')
        # Those of the other splits too, so that these do not drive each other out.
        total = sum(size for name, size in sizes.items() if name.endswith('.array_record'))
        if total > most_bytes:
            raise UserError(
                f'the shards in {folder} have {total / 2**30:.3g} GiB, and '
                f'data.bucket_cache_bytes={most_bytes} allows {most_bytes / 2**30:.3g} GiB: raise '
                'it if the disk of data.cache has the space, or copy them to a local disk.')
        self._origin, self._shards = folder, shards
        self._folder = pathlib.Path(cache).expanduser() / 'shards' / digest(str(folder))
        self._use = _shared_lock(self._folder)
        _make_room(self._folder, most_bytes - total)
        self._forget_others(sizes)

    def _forget_others(self, present: Mapping[str, int]) -> None:
        """Deletes copies of shards that the bucket no longer holds, or holds with other content."""
        files = {shard['name']: self._path(shard) for shard in self._shards}
        for old in self._folder.glob('*.array_record'):
            name = old.name.partition('-')[2]
            if name not in present or files.get(name, old) != old:
                old.unlink(missing_ok=True)

    def __getstate__(self):
        return self.__dict__ | {'_use': None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._use = _shared_lock(self._folder)

    def file(self, index: int) -> pathlib.Path:
        """The local copy of a shard, which is fetched if it is missing.

        Raises:
          UserError: it cannot be fetched, or is not what was written.
        """
        shard = self._shards[index]
        path = self._path(shard)
        if _size(path) == shard['bytes']:
            return path
        with _locked(path.with_suffix('.lock')):
            if _size(path) != shard['bytes']:
                self._fetch(shard, path)
        return path

    def _path(self, shard: Mapping[str, Any]) -> pathlib.Path:
        """Named by the checksum too, since a dataset that is prepared again has other shards."""
        return self._folder / f'{shard["checksum"]:08x}-{shard["name"]}'

    def _fetch(self, shard: Mapping[str, Any], path: pathlib.Path) -> None:
        origin, part = self._origin / shard['name'], path.with_suffix('.part')
        try:
            storage.file_system(origin).get_file(str(origin), str(part))
            if (found := _size(part)) != shard['bytes']:
                raise UserError(f'{origin} has {found} bytes instead of {shard["bytes"]}: it was '
                                f'truncated or replaced; {ADVICE}.')
            if not _is_as_written(part, shard):
                raise UserError(f'{origin} does not hold what was written; {ADVICE}.')
            os.replace(part, path)
        except FileNotFoundError as error:
            raise UserError(f'{origin} is missing; {ADVICE}.') from error
        except UserError:
            raise
        except Exception as error:  # gcsfs, s3fs and what they use raise many kinds
            if problem := storage.problem(error):
                raise UserError(f'{origin} cannot be read: {problem}.') from error
            if isinstance(error, OSError) and error.errno:
                raise UserError(f'{self._folder} cannot be written to: {error.strerror}.') from (
                    error)
            raise
        finally:
            part.unlink(missing_ok=True)


def _is_as_written(path: pathlib.Path, shard: Mapping[str, Any]) -> bool:
    """Compares the checksum of all records, and with it those that ArrayRecord stores."""
    from array_record.python.array_record_module import ArrayRecordReader

    checksum = 0
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        for start in range(0, count, READ_AT_ONCE):
            for record in reader.read(range(start, min(start + READ_AT_ONCE, count))):
                checksum = zlib.crc32(record, checksum)
    except Exception:  # the reader raises whatever the damage leads to
        return False
    return (count, checksum) == (shard['num_images'], shard['checksum'])


def _size(path: pathlib.Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def _make_room(folder: pathlib.Path, most_bytes: int) -> None:
    """Deletes other datasets that no process reads, the longest unused first.

    Args:
      folder: of the dataset that stays.
      most_bytes: that the others may keep.

    Raises:
      UserError: other processes read more than that.
    """
    others = sorted((other for other in folder.parent.iterdir() if other != folder),
                    key=lambda other: (other / IN_USE).stat().st_mtime if (
                        other / IN_USE).exists() else 0)
    sizes = {other: sum(_size(file) or 0 for file in other.iterdir()) for other in others}
    left = sum(sizes.values())
    for other in others:
        if left <= most_bytes:
            return
        with open(other / IN_USE, 'a') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(other, ignore_errors=True)
            left -= sizes[other]
    if left > most_bytes:
        raise UserError(f'other processes read {left / 2**30:.3g} GiB of shards from '
                        f'{folder.parent}, which leaves too little of data.bucket_cache_bytes: '
                        'raise it, or wait for them.')


def _shared_lock(folder: pathlib.Path) -> Any:
    """A file whose lock says, as long as it is open, that this dataset is read."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process has just deleted the folder
            file = open(folder / IN_USE, 'a')  # noqa: SIM115, closed with its owner
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(folder / IN_USE)
            return file


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock against the other threads and processes of this machine."""
    with open(path, 'a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
