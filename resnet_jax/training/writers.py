"""Writers of metrics: metrics.jsonl and TensorBoard files."""

import contextlib
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

from resnet_jax import storage
from resnet_jax.output import warn, write_whole


class MetricsWriter:
    """Writes rows of measurements to `workdir/metrics.jsonl` and TensorBoard files.

    When a run resumes from a checkpoint, rows of later steps are dropped first, since they will be
    measured again. Only process 0 writes. A row is on disk when `write` returns, and in a bucket
    when `sync` returns; see `storage.Growing`.
    """

    def __init__(self, workdir: storage.Path, rows: Sequence[Mapping[str, float | None]],
                 start_step: int, evaluations: Mapping[int, Mapping[str, float]] | None = None):
        """Opens the files.

        Args:
          workdir: must exist.
          rows: in the log so far; see `rows_of_first_process`.
          start_step: of the checkpoint that the run resumes from, or 0.
          evaluations: stored in the checkpoints, by step; missing rows are restored from them, and
            an evaluation of start_step that is not among them is dropped.
        """
        self._file: storage.Growing | None = None
        self._board: TensorBoard | None = None
        if jax.process_index() != 0:
            return
        path = workdir / 'metrics.jsonl'
        rows = _agreeing(rows, start_step, evaluations or {})
        content = ''.join(json.dumps(row) + '\n' for row in rows).encode()
        write_whole(path, content)
        self._file = storage.Growing(path, content)
        self._board = board = TensorBoard(workdir, start_step)
        for row in rows:
            if row['step'] == start_step:  # only of its last step may points be missing
                board.write(start_step, row)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row: `step` and the values under their tags, null if not finite."""
        if self._file is None or self._board is None:
            return
        self._board.write(step, values)
        self._file.write(f'{json.dumps(_row(step, values))}\n'.encode())
        self._file.flush()

    def sync(self) -> None:
        """Writes the rows that are not there yet, as they may be in a bucket."""
        for file in (self._file, self._board):
            if file is not None:
                file.sync()

    def close(self) -> None:
        """Closes the files; `write` has reported what could not be written."""
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


class TensorBoard:
    """An event file of scalars, which replaces all points of earlier files from a step on."""

    def __init__(self, folder: storage.Path, start_step: int):
        self._protos = _protos()
        # Named by the time in seconds; a second writer within one second appends.
        name = (f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
                f'.{start_step:09d}')
        self._file = storage.Growing(folder / name)
        start = self._protos.event_pb2.SessionLog.START
        self._add(file_version='brain.Event:2')
        self._add(step=start_step,
                  session_log=self._protos.event_pb2.SessionLog(status=start))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one point per tag, see `MetricsWriter`."""
        value = self._protos.summary_pb2.Summary.Value
        points = [value(tag=tag, simple_value=math.nan if x is None else x)
                  for tag, x in values.items() if tag != 'step']
        self._add(step=step, summary=self._protos.summary_pb2.Summary(value=points))
        self._file.flush()

    def _add(self, **fields) -> None:
        event = self._protos.event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        self._file.write(_record(event))

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def _protos() -> ModuleType:
    """The message types of tensorboardX, without importing PyTorch, which it would do if installed.

    Its writer is not used: it writes in a separate thread, so a kill loses points and a full disk
    goes unnoticed.
    """
    absent = 'torch' not in sys.modules
    if absent:
        # Importing it fails, as if it were not installed.
        sys.modules['torch'] = None  # type: ignore[assignment]
    try:
        from tensorboardX import proto
        from tensorboardX.proto import event_pb2, summary_pb2  # noqa: F401, attributes of proto
    finally:
        if absent:
            del sys.modules['torch']
    return proto


def _record(content: bytes) -> bytes:
    """A TFRecord: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack('<Q', len(content))
    return b''.join((length, struct.pack('<I', masked_crc32c(length)),
                     content, struct.pack('<I', masked_crc32c(content))))


def _row(step: int, values: Mapping[str, float]) -> dict[str, float | None]:
    return {'step': step, **{tag: value if value is not None and math.isfinite(value) else None
                             for tag, value in values.items()}}


def _agreeing(rows: Sequence[Mapping], start_step: int,
              evaluations: Mapping[int, Mapping[str, float]]) -> list[Mapping]:
    """The rows up to a step, with the evaluations that are stored in checkpoints."""
    kept: list[Mapping] = []
    seen = set()
    for row in rows:
        step = row['step']
        if is_evaluation(row):
            if step in seen or (step == start_step and step not in evaluations):
                continue
            if step in evaluations:
                row = _row(step, evaluations[step])
            seen.add(step)
        if step <= start_step:
            kept.append(row)
    kept += [_row(step, values) for step, values in evaluations.items()
             if step <= start_step and step not in seen]
    # Stable: of one step, training comes first.
    return sorted(kept, key=lambda row: (row['step'], is_evaluation(row)))


def is_evaluation(row: Mapping[str, float | None]) -> bool:
    """Whether a row of metrics.jsonl is an evaluation."""
    return any(tag.startswith('eval/') for tag in row)


def rows_of_first_process(workdir: storage.Path) -> list[dict[str, Any]]:
    """The rows of the workdir's metrics.jsonl in process 0, and none in the other processes.

    Warns about lines that cannot be read.
    """
    if jax.process_index() != 0:
        return []
    path = workdir / 'metrics.jsonl'
    rows, unreadable = parse_rows(path)
    if unreadable:
        warn(f'{unreadable} {"line" if unreadable == 1 else "lines"} of {path} cannot be read '
             'and will be removed.')
    return rows


def read_rows(path: storage.Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that cannot be read are left out."""
    return parse_rows(path)[0]


def parse_rows(path: storage.Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics.jsonl, and how many of its lines cannot be read.

    An incomplete last line is not counted: its writing was interrupted, and it is measured again.
    """
    if not path.exists():
        return [], 0
    rows, unreadable = [], 0
    *lines, last = path.read_bytes().split(b'\n')
    for line in lines:
        row = _parsed(line)
        if row is None:
            unreadable += 1
        else:
            rows.append(row)
    row = _parsed(last)
    return (rows if row is None else [*rows, row]), unreadable


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get('step'), int) else None
