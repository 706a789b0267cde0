"""Where measurements go: metrics.jsonl, TensorBoard files and the terminal."""

import contextlib
import json
import math
import os
import pathlib
import sys
from typing import TextIO

import jax


def _summary_writer_class() -> type:
    """tensorboardX's, without PyTorch, which it would import where that is installed."""
    absent = 'torch' not in sys.modules
    if absent:
        sys.modules['torch'] = None  # an import of it fails, as if it were not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules['torch']
    return SummaryWriter


class MetricsWriter:
    """Writes rows of measurements to `workdir/metrics.jsonl` and TensorBoard files.

    When a run goes on from a checkpoint, the rows of the steps after it are dropped first: they
    will be measured again. Only the first process writes.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int):
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        path = workdir / 'metrics.jsonl'
        write_whole(path, ''.join(
            json.dumps(row) + '\n' for row in read_rows(path) if row['step'] <= start_step))
        self._file = path.open('a')
        self._board = _summary_writer_class()(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row: `step` and the values under their tags; what is not finite reads null."""
        if self._file is None:
            return
        row = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._file.write(json.dumps({'step': step, **row}) + '\n')
        self._file.flush()
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def read_rows(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; a last line that was cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file such that it is there whole or not at all."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def say(message: str, file: TextIO | None = None) -> None:
    """A line on stdout or another file, from the first process only; nobody need be listening."""
    if jax.process_index() == 0:
        with contextlib.suppress(BrokenPipeError):
            print(message, file=file, flush=True)


def warn(message: str) -> None:
    """One line on stderr, from the first process only: 'warning: ' and the sentence."""
    say(f'warning: {message}', sys.stderr)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    seconds = round(seconds)
    return f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
