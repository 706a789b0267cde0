"""Loads trained networks of any task."""

from collections.abc import Sequence
from typing import Any

from resnet_jax import storage
from resnet_jax.errors import UserError
from resnet_jax.tasks.task import Task, get
from resnet_jax.weights import stored


def load(path: str | storage.Path) -> Any:
    """Loads the network of a workdir, a checkpoint, weights or a name; see `resnet_jax.load`."""
    path = storage.path_of(path)
    weights = stored.read(path)
    return get(weights.config.task).load(weights, path)


def load_all(paths: Sequence[str | storage.Path]) -> tuple[Task, list[Any]]:
    """Loads networks, and checks that they have the same task.

    Raises:
      UserError: a path holds no network, or they were trained for different tasks.
    """
    networks = [load(path) for path in paths]
    names = {network.config.task: path for network, path in zip(networks, paths, strict=True)}
    if len(names) > 1:
        raise UserError('these networks are not an ensemble: they were trained for different '
                        'tasks, ' + ', '.join(f'{path} for {name}' for name, path in names.items())
                        + '.')
    return get(next(iter(names))), networks
