"""Counts skipped unreadable images, and reports them without flooding the terminal."""

import threading

from resnet_jax.output import warn

NAMED = 3  # images that are reported one by one, before counts only


class Skips:
    """Counts the images that are left out where `data.on_unreadable` is 'skip'.

    The first few are reported by name, the others when there are 10, 100, 1,000, … May be called
    from several threads.

    Attributes:
      count: images left out so far, each time they were met.
    """

    def __init__(self):
        self.count = 0
        self._lock = threading.Lock()

    def add(self, error: str) -> None:
        """Counts an image; error is the sentence that names it."""
        with self._lock:
            self.count += 1
            count = self.count
        if count <= NAMED:
            warn(f'skipped an image: {error}')
        elif count == 10 ** (len(str(count)) - 1):
            warn(f'skipped {count:,} unreadable images so far; the last one: {error}')
