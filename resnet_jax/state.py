"""The training state, its initialisation, and the recalibration of batch normalisation."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from resnet_jax.data import Normalization
from resnet_jax.optim import Schedule


@struct.dataclass
class TrainState:
    """Everything that a training run goes on from.

    Attributes:
      step: int32, updates done.
      params: parameters of the network, float32.
      batch_stats: running means and variances, float32.
      opt_state: the optimizer's state.
      schedule_state: what the learning-rate rules remember of the training error.
      ema: moving averages of 'params' and 'batch_stats', or None.
      normalization: of the network's input; it belongs to the parameters as much as they do.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    schedule_state: Any
    ema: Any
    normalization: Normalization

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with in training."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What the network is evaluated with: the moving averages, where there are any."""
        return self.variables if self.ema is None else self.ema


def create_state(model: nn.Module, optimizer: optax.GradientTransformation, schedule: Schedule,
                 image_shape: tuple[int, int, int], seed: int, use_ema: bool,
                 normalization: Normalization) -> TrainState:
    """The state before the first step. Pure: runs under jit, and `jax.eval_shape`."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init(jax.random.key(seed), image, train=False)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    average = {'params': params, 'batch_stats': batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        schedule_state=schedule.init(),
        # Copies, since a donated buffer cannot stand in the state twice.
        ema=jax.tree.map(jnp.copy, average) if use_ema else None,
        normalization=jax.tree.map(jnp.asarray, normalization),
    )


def recalibrate(statistics: Iterable[Any]) -> Any:
    """Running statistics as the strict average over some training batches.

    The authors' released models were evaluated so. Each batch is normalised by its own statistics,
    as in training.

    Args:
      statistics: trees of the batch statistics of single batches, float32; at least one.

    Returns:
      The mean of these trees.
    """
    mean = None
    for count, new in enumerate(statistics, 1):
        # A running mean: a sum over many batches would lose low bits.
        mean = new if mean is None else _step_mean(mean, new, jnp.float32(count))
    return mean


@jax.jit
def _step_mean(mean, new, count):
    return jax.tree.map(lambda m, n: m + (n - m) / count, mean, new)
