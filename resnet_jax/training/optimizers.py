"""Optimizers, composed from optax.

The learning rate is not part of an optimizer's state: a schedule computes it in every step (see
`resnet_jax.training.schedules`), and `update` takes it as the keyword argument `learning_rate`. So
it can be logged, and a schedule may depend on how the training goes.

To add one, write a function from `config.optimizer` to a list of transformations, and enter it in
the table OPTIMIZERS and in `CHOICES` of resnet_jax/config/fields.py, where its own fields go too.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import STACKED


def create(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Creates the optimizer of `config.optimizer`; parameters in `init.freeze` do not change.

    Its `update` takes the keyword `learning_rate`, float32 [].
    """
    o = config.optimizer
    clip = [] if o.clip_norm is None else [optax.clip_by_global_norm(o.clip_norm)]
    optimizer = optax.with_extra_args_support(optax.chain(*clip, *OPTIMIZERS[o.name](o)))
    if config.init.freeze:
        optimizer = optax.partition(
            {False: optimizer, True: optax.set_to_zero()},
            functools.partial(frozen, patterns=config.init.freeze))
    return optimizer


def sgd(o: ConfigDict) -> list[optax.GradientTransformation]:
    """Gradient descent with momentum, in the form of the paper (Caffe) or of PyTorch.

    'paper': v <- momentum * v + rate * (g + decay * w), w <- w - v.
    'pytorch': v <- momentum * v + g + decay * w, w <- w - rate * v.
    They differ in the steps after a change of the learning rate (Goyal et al., 2017, remark 2).
    """
    rate, momentum = scale_by_learning_rate(), optax.trace(o.momentum, nesterov=o.nesterov)
    last = [rate, momentum] if o.momentum_form == 'paper' else [momentum, rate]
    return [decayed_weights(o), *last]


def lars(o: ConfigDict) -> list[optax.GradientTransformation]:
    """LARS; biases and batch normalisation are not rescaled. See `scale_by_lars`."""
    local_rate = optax.masked(
        per_layer(scale_by_lars(o.lars_trust_coefficient, o.weight_decay)), weights_only)
    others_decay = optax.add_decayed_weights(
        o.weight_decay if o.decay_bn_and_bias else 0.0, no_weights)
    return [others_decay, local_rate, scale_by_learning_rate(),
            optax.trace(o.momentum, nesterov=o.nesterov)]


def adamw(o: ConfigDict) -> list[optax.GradientTransformation]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return [optax.scale_by_adam(o.adamw_b1, o.adamw_b2, o.adamw_epsilon), decayed_weights(o),
            scale_by_learning_rate()]


OPTIMIZERS = {'sgd': sgd, 'lars': lars, 'adamw': adamw}


def decayed_weights(o: ConfigDict) -> optax.GradientTransformation:
    """Adds the weight decay, to kernels only unless `decay_bn_and_bias` is set."""
    return optax.add_decayed_weights(o.weight_decay, None if o.decay_bn_and_bias else weights_only)


def frozen(params: Any, patterns: Sequence[str]) -> Any:
    """Marks the parameters that are not trained: a tree of bools.

    Args:
      params: the parameters, or their shapes.
      patterns: regular expressions, searched for in paths such as 'stage1/block1/conv1/kernel'.

    Raises:
      UserError: a pattern does not match any path.
    """
    def path_of(path):
        return jax.tree_util.keystr(path, simple=True, separator='/')

    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f'init.freeze: {pattern!r} does not match any parameter; their paths '
                            f'look like {paths[0]} and {paths[-1]}.')
    return jax.tree.map_with_path(
        lambda path, _: any(re.search(pattern, path_of(path)) for pattern in patterns), params)


def stop_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """Stops the gradients of frozen parameters."""
    return jax.tree.map(lambda is_frozen, x: jax.lax.stop_gradient(x) if is_frozen else x,
                        frozen(params, patterns), params)


def scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the keyword argument `learning_rate` of `update`."""

    def update(updates, state, params=None, *, learning_rate, **_):
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_lars(coefficient: float, decay: float) -> optax.GradientTransformation:
    """Scales updates per layer by LARS, before the learning rate: local rate * (g + decay * w).

    Y. You et al., "Large Batch Training of Convolutional Networks", 2017, algorithm 1: the local
    rate is coefficient * |w| / (|g| + decay * |w|). As in MLPerf's reference and in timm, it is 1
    where |w| or |g| is 0, and the global rate is inside the momentum, as in the algorithm.
    """

    def update(updates, state, params):
        def one(g, w):
            gradient_norm, weight_norm = optax.tree.norm(g), optax.tree.norm(w)
            local = coefficient * weight_norm / (gradient_norm + decay * weight_norm)
            return jnp.where((weight_norm > 0) & (gradient_norm > 0), local, 1.0) * (g + decay * w)

        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a stateless transform to each layer separately, also where layers are stacked."""

    def update(updates, state, params=None):
        def one(path, update, param):
            def apply(u, p):
                return transform.update(u, state, p)[0]

            return (jax.vmap(apply) if is_stacked(path) else apply)(update, param)

        return jax.tree.map_with_path(one, updates, params), state

    return optax.GradientTransformation(transform.init, update)


def is_stacked(path) -> bool:
    """Whether the parameter at this path holds those of several blocks along its first axis."""
    return any(getattr(key, 'key', None) == STACKED for key in path)


def weights_only(params) -> Any:
    """True for convolution and dense kernels; False for biases, gammas and betas."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def no_weights(params) -> Any:
    """True where `weights_only` is False."""
    return jax.tree.map(lambda is_weight: not is_weight, weights_only(params))
