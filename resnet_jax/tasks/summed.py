"""Losses of tasks that are sums over images in a dict, beside 'loss' and 'count'."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.errors import UserError


def losses(parts: Mapping[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Sums the losses of a batch over its images.

    Args:
      parts: float32 [N] by name.
      mask: float32 [N], 0 for images that do not count.

    Returns:
      Each sum by name, their total as 'loss', and the number of images as 'count'; all [].
    """
    sums = {name: (part * mask).sum() for name, part in parts.items()}
    total: Any = sum(sums.values())
    return {'loss': total, **sums, 'count': mask.sum()}


def train_report(sums: Mapping[str, Any]) -> dict[str, float]:
    """The losses, averaged over the images of some steps; see `Task.train_report`."""
    losses = jax.device_get(dict(sums))
    count = np.float64(losses.pop('count'))
    return {name: float(value / count) for name, value in losses.items()}


def watched(sums: Mapping[str, jax.Array]) -> jax.Array:
    """The loss, float32 []; 0 without images. See `Task.watched`."""
    return sums['loss'] / jnp.maximum(sums['count'], 1)


def check_schedule(config: ConfigDict) -> None:
    """Raises UserError if the schedule watches a training error, which this task has none of."""
    if config.schedule.name == 'plateau' or config.schedule.warmup == 'error':
        raise UserError('schedules that watch the training error are for classifiers: set '
                        'schedule.name to steps, cosine or constant, and schedule.warmup to none '
                        'or linear.')
