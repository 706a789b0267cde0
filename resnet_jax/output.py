"""Output to the terminal, with a live line at its bottom, and atomic writing of files."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax
from tqdm import tqdm

from resnet_jax import storage


def write_whole(path: storage.Path, content: str | bytes) -> None:
    """Writes a file such that it is there whole or not at all."""
    if storage.in_bucket(path):  # as all objects of a bucket are
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def say(message: str, file: TextIO | None = None) -> None:
    """Prints a line on stdout or another file, in process 0 only; a closed pipe is ignored.

    It appears above the live line, if there is one.
    """
    if jax.process_index() == 0:
        with contextlib.suppress(BrokenPipeError), LiveLine.hidden():
            print(message, file=file, flush=True)


def warn(message: str) -> None:
    """Prints 'warning: ' and the sentence on stderr, in process 0 only."""
    say(f'warning: {message}', sys.stderr)


class _Bar(tqdm):
    monitor_interval = 0  # no thread that redraws it

    @property
    def format_dict(self) -> dict[str, Any]:
        """As tqdm's, with room on the right for the ^C that a terminal echoes."""
        fields = super().format_dict
        return fields | {'ncols': max(1, (fields['ncols'] or 80) - 4)}


class LiveLine:
    """The last line of a terminal, which is overwritten: a bar, and a text that may be cut off."""

    shown: tqdm | None = None  # of the process, which has one terminal

    def __init__(self, total: int, done: int):
        """Draws nothing yet.

        Args:
          total: steps of the whole bar.
          done: steps so far.
        """
        self._bar = _Bar(total=total, initial=done, file=sys.stdout, delay=1e-9, miniters=1,
                         mininterval=0, dynamic_ncols=True,
                         bar_format='{percentage:3.0f} % |{bar:12}| {n_fmt}/{total_fmt}  {desc}')

    @staticmethod
    def is_possible() -> bool:
        """Whether stdout is a terminal that can overwrite a line, and this is process 0."""
        return (sys.stdout.isatty() and os.environ.get('TERM') != 'dumb'
                and jax.process_index() == 0)

    @classmethod
    @contextlib.contextmanager
    def hidden(cls) -> Iterator[None]:
        """Takes the line away for as long as others are printed."""
        if cls.shown is not None:
            cls.shown.clear()
        try:
            yield
        finally:
            if cls.shown is not None:
                cls.shown.refresh()

    def show(self, done: int, text: str) -> None:
        """Draws the line."""
        LiveLine.shown = self._bar
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leaves the line as it is, with the cursor below it."""
        if LiveLine.shown is self._bar:
            LiveLine.shown = None
            self._bar.close()


def duration(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds, as in 1:02:03."""
    seconds = round(seconds)
    return f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
