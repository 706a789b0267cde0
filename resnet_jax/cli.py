"""What the commands share: the --config flag, and one sentence instead of a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.errors import UserError


def fail(message: str) -> None:
    """Prints one sentence and exits with 1."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(1)
