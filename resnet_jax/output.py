"""Output to the terminal, and atomic writing of files."""

import contextlib
import os
import sys
from typing import TextIO

import jax

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
    """Prints a line on stdout or another file, in process 0 only; a closed pipe is ignored."""
    if jax.process_index() == 0:
        with contextlib.suppress(BrokenPipeError):
            print(message, file=file, flush=True)


def warn(message: str) -> None:
    """Prints 'warning: ' and the sentence on stderr, in process 0 only."""
    say(f'warning: {message}', sys.stderr)


def duration(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds, as in 1:02:03."""
    seconds = round(seconds)
    return f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
