"""The training step, as a pure function."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from ml_collections import ConfigDict

from resnet_jax.data import Batch
from resnet_jax.tasks import Task
from resnet_jax.training import accumulation
from resnet_jax.training.optimizers import stop_frozen
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import TrainState


@struct.dataclass
class StepReport:
    """The measurements of a training step.

    Attributes:
      metrics: of the step's batch, before the update; see `Task.loss`.
      learning_rate: of the update, float32.
      gradient_norm: global, before clipping, float32.
      parameter_norm: global, after the update, float32.
    """

    metrics: Any
    learning_rate: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array


# The purpose of the keys of dropout, below the step's. The augmentation folds the rows of the batch
# into the same key, and 2**32 - 1; no batch has that many rows.
DROPOUT = 2**32 - 2


def train_step(state: TrainState, batch: Batch, seed: jax.Array, *, task: Task, model: nn.Module,
               optimizer: optax.GradientTransformationExtraArgs, schedule: Schedule,
               config: ConfigDict) -> tuple[TrainState, StepReport]:
    """Updates the state by the gradient of the mean loss over a batch.

    Args:
      state: see `TrainState`.
      batch: 'image' float32 [N, H, W, C], normalised; 'mask' float32 [N]; the task's targets.
      seed: of the run, uint32 []; dropout draws from it and the step.
      task: its loss is minimised.
      model, optimizer, schedule: what the state was created with.
      config: the fields `init` and `optimizer` are read, the size of virtual batches, and what the
        task reads.

    Returns:
      The state after the update, and the report.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    key = jax.random.fold_in(key, DROPOUT)

    def loss(params, network, part, key):
        params = stop_frozen(params, config.init.freeze)
        total, batch_stats, metrics = task.loss(
            network, {**state.variables, 'params': params}, part, key, config)
        return total, (batch_stats, metrics)

    def gradient(network, part, key):
        grads, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(
            state.params, network, part, key)
        return grads, batch_stats, metrics

    if config.optimizer.accumulation_steps == 1:
        grads, batch_stats, metrics = gradient(model, batch, key)
    else:
        grads, batch_stats, metrics = accumulation.accumulate(gradient, model, batch, key, config)

    # The gradient of the sum becomes that of the mean here, so that devices add up the number of
    # images, which divides it, in the same go as the gradients.
    images = jnp.maximum(batch['mask'].sum(), 1)
    grads = jax.tree.map(lambda g: g / images, grads)
    schedule_state, rate = schedule.update(
        state.schedule_state, state.step, task.watched(metrics))
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, learning_rate=rate)
    params = optax.apply_updates(state.params, updates)
    new_state = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
        schedule_state=schedule_state)
    if state.ema is not None:
        new_state = new_state.replace(ema=optax.incremental_update(
            new_state.variables, state.ema,
            1 - ema_decay(config.optimizer.ema_decay, config.optimizer.ema_warmup, state.step)))
    return new_state, StepReport(
        metrics, rate, optax.tree.norm(grads), optax.tree.norm(params))


def ema_decay(decay: float, warmup: bool, step: jax.Array) -> float | jax.Array:
    """Computes the decay of the moving average at a step.

    With a warm-up, at most (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage.
    After n updates below the cap, the initial parameters then have the weight 9! n! / (n + 9)!, 2 %
    after two updates; with a constant decay of 0.9999 they have 61 % after 5,000.

    Args:
      decay: the largest, from 0 to 1.
      warmup: whether it grows from 1 / 10 to `decay`.
      step: updates done before this one, int32 [].

    Returns:
      `decay`, or float32 [].
    """
    if not warmup:
        return decay
    done = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + done) / (10 + done))


def batch_statistics(state: TrainState, batch: Batch, *, task: Task, model: nn.Module,
                     config: ConfigDict) -> Any:
    """Computes the statistics of one batch.

    The network is applied as the task's loss applies it, which may need the targets.
    """
    # With momentum 0 nothing is left of the old running statistics.
    return task.loss(model.clone(bn_momentum=0.0, bn_frozen=False), state.eval_variables, batch,
                     jax.random.key(0), config)[1]
