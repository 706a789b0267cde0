"""The training state, its initialisation, and recalibration of batch-norm statistics."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from resnet_jax.data import Normalization
from resnet_jax.errors import UserError
from resnet_jax.training.schedules import Schedule

MISFITS_LISTED = 6  # arrays that an error names


class TrainState(struct.PyTreeNode):
    """Everything that a training run resumes from.

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
        """The variables for training."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables for evaluation: the moving averages, if there are any."""
        return self.variables if self.ema is None else self.ema


def create_state(model: nn.Module, optimizer: optax.GradientTransformation, schedule: Schedule,
                 image_shape: tuple[int, int, int], seed: int, use_ema: bool,
                 normalization: Normalization) -> TrainState:
    """Creates the state before the first step. Pure: runs under jit and `jax.eval_shape`."""
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


def with_weights(state: TrainState, variables: Mapping[str, Any],
                 normalization: Mapping[str, Any], heads: Sequence[str]) -> TrainState:
    """Replaces the weights by those of another network, and the normalisation with them.

    Args:
      state: before the first step; gives the shapes and the shardings.
      variables: 'params' and 'batch_stats', arrays of the host.
      normalization: 'mean' and 'std'; a colour fits where the state has a mean image, and of a mean
        image of another size the mean colour is taken.
      heads: parts that stay those of the state, such as ('head',); the other network's are left
        out.

    Raises:
      UserError: the weights are those of another architecture; the message lists the differences.
    """
    old = state.variables
    new = {name: {part: tree for part, tree in variables.get(name, {}).items() if part not in heads}
           | {part: old[name][part] for part in heads if part in old[name]} for name in old}
    shapes, given = (
        {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
         for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (old, new))
    wrong = [name for name in {**shapes, **given} if shapes.get(name) != given.get(name)]
    if wrong:
        listed = ', '.join(f'{name} ({given.get(name, "missing")} for {shapes.get(name, "none")})'
                           for name in wrong[:MISFITS_LISTED])
        raise UserError(f'the weights of init.checkpoint do not fit the network: {len(wrong)} '
                        f'arrays differ, among them {listed}.')
    normalization = {part: _resized(value, state.normalization[part].shape)
                     for part, value in normalization.items()}
    for part, there in state.normalization.items():
        if there.shape[there.ndim - np.ndim(normalization[part]):] != np.shape(
                normalization[part]):
            raise UserError(
                f'the {part} stored with the weights of init.checkpoint has the shape '
                f'{np.shape(normalization[part])}, but that of the data has {there.shape}: set '
                'data.normalization and data.image_size as for those weights.')
    put = functools.partial(jax.tree.map, lambda x, like: jax.device_put(
        np.broadcast_to(x, like.shape) if isinstance(x, np.ndarray) else x, like.sharding))
    new = put(new, old)
    return state.replace(
        **new, ema=None if state.ema is None else jax.tree.map(jnp.copy, new),
        normalization=put(normalization, state.normalization))


def _resized(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mean image as it is, or its mean colour where one of another size is needed."""
    another = np.ndim(value) == len(shape) == 3 and np.shape(value)[:2] != tuple(shape[:2])
    return np.mean(value, (0, 1)) if another else value


def recalibrate(statistics: Iterable[Any]) -> Any:
    """Computes running statistics as the plain average over some training batches.

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
