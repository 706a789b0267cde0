"""Starts training, for `python -m resnet_jax.main` and for `resnet_jax.train` alike."""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import storage
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.errors import UserError
from resnet_jax.output import say
from resnet_jax.tasks import loading
from resnet_jax.training import loop
from resnet_jax.training.writers import read_rows
from resnet_jax.xla import cpu
from resnet_jax.xla import flags as xla_flags


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that has come to its end.

    Attributes:
      workdir: its folder.
      metrics: the last evaluation, by TensorBoard tags, such as 'eval/top1_error'.
    """

    workdir: storage.Path
    metrics: dict[str, float]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: 'step', and what was logged or evaluated after this step."""
        return read_rows(self.workdir / 'metrics.jsonl')

    @functools.cached_property
    def network(self) -> Any:
        """The trained network, as `resnet_jax.load` returns it."""
        return loading.load(self.workdir)


def prepare(config: ConfigDict) -> None:
    """Sets what JAX reads as it starts; where it has started already, this changes nothing.

    Args:
      config: the field `xla_preset` is read.

    Raises:
      UserError: a field of the config is out of its range.
    """
    config_lib.check_ranges(config_lib.given(config))
    xla_flags.use(config.xla_preset)
    cpu.compute_in_main_thread()


def train(config: ConfigDict, workdir: storage.Path) -> Trained:
    """Trains the network of a config; resumes automatically from the latest checkpoint.

    Args:
      config: see `resnet_jax.config`; `prepare` was called with it.
      workdir: see `loop.train`.

    Raises:
      UserError, loop.Stopped: see `loop.train`.
    """
    cpu.keep_memory()
    say('\n'.join(filter(None, (config_lib.derived_table(config), f'workdir: {workdir}'))))
    try:
        return Trained(workdir, loop.train(config, workdir))
    except UnreadableImageError as error:
        raise UserError(f'{error} To leave out images that cannot be read, pass '
                        '--config.data.on_unreadable=skip.') from error
