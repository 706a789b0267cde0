"""Optimizers and learning-rate schedules, composed from optax.

The learning rate is not part of the optimizer's state. In every step, a `Schedule` computes it from
the step and the training error, and it is passed to the optimizer as an argument. It can therefore
be logged directly, and schedules that depend on the training error, like the paper's, are nothing
special.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import STACKED


def create_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `config.optimizer`.

    Its `update` takes the keyword `learning_rate`, a float32 scalar.

    'sgd' in the 'paper' form is Caffe's: v <- momentum * v + rate * (g + decay * w), w <- w - v.
    The 'pytorch' form is v <- momentum * v + g + decay * w, w <- w - rate * v. They differ in the
    steps that follow a change of the rate (Goyal et al., 2017, remark 2).

    Raises:
      UserError: a field is out of its range.
    """
    o = config.optimizer
    _one_of('optimizer.name', o.name, ('sgd', 'lars', 'adamw'))
    _one_of('optimizer.momentum_form', o.momentum_form, ('paper', 'pytorch'))
    if o.clip_norm is not None and o.clip_norm <= 0:
        raise UserError(f'optimizer.clip_norm must be positive or none, got {o.clip_norm}.')
    mask = None if o.decay_bn_and_bias else weights_only
    decay = optax.add_decayed_weights(o.weight_decay, mask)
    rate = scale_by_learning_rate()
    momentum = optax.trace(o.momentum, nesterov=o.nesterov)
    parts = [] if o.clip_norm is None else [optax.clip_by_global_norm(o.clip_norm)]
    if o.name == 'sgd':
        parts += [decay, rate, momentum] if o.momentum_form == 'paper' else [decay, momentum, rate]
    elif o.name == 'lars':
        # Biases and batch normalisation are not rescaled.
        local_rate = optax.masked(
            per_layer(scale_by_lars(o.lars_trust_coefficient, o.weight_decay)), weights_only)
        others_decay = optax.add_decayed_weights(
            o.weight_decay if o.decay_bn_and_bias else 0.0, no_weights)
        parts += [others_decay, local_rate, rate, momentum]
    else:
        parts += [optax.scale_by_adam(o.adamw_b1, o.adamw_b2, o.adamw_epsilon), decay, rate]
    optimizer = optax.with_extra_args_support(optax.chain(*parts))
    if config.init.freeze:
        optimizer = optax.partition(
            {False: optimizer, True: optax.set_to_zero()},
            functools.partial(frozen, patterns=config.init.freeze))
    return optimizer


def frozen(params: Any, patterns: Sequence[str]) -> Any:
    """Which parameters stay as they are: a tree of bools.

    Args:
      params: the parameters, or their shapes.
      patterns: regular expressions, to be found in paths such as 'stage1/block1/conv1/kernel'.

    Raises:
      UserError: a pattern is no regular expression, or is found in no path.
    """
    def path_of(path):
        return jax.tree_util.keystr(path, simple=True, separator='/')

    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        try:
            found = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise UserError(f'init.freeze: {pattern!r} is no regular expression: {error}.') from (
                error)
        if not found:
            raise UserError(f'init.freeze: {pattern!r} is found in no path of a parameter; those '
                            f'read {paths[0]}, {paths[-1]}.')
    return jax.tree.map_with_path(
        lambda path, _: any(re.search(pattern, path_of(path)) for pattern in patterns), params)


def stop_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """The parameters, no gradient being computed for those that are frozen."""
    return jax.tree.map(lambda is_frozen, x: jax.lax.stop_gradient(x) if is_frozen else x,
                        frozen(params, patterns), params)


def scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the `learning_rate` that `update` is given."""

    def update(updates, state, params=None, *, learning_rate, **_):
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_lars(coefficient: float, decay: float) -> optax.GradientTransformation:
    """A layer's update by LARS, before the global rate: g -> local rate * (g + decay * w).

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
    """Applies a stateless transform to every layer by itself, also where layers are stacked."""

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


class Schedule(NamedTuple):
    """A learning rate that may listen to the training error.

    Attributes:
      init: () -> state.
      update: (state, step, error) -> (state, rate). `step` is int32, `error` the top-1 error of
        the step's own batch in percent, `rate` a float32 scalar for this step.
    """

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


def create_schedule(config: ConfigDict) -> Schedule:
    """The schedule of `config.schedule`: a curve over steps, times the rules for the error.

    Raises:
      UserError: a field is out of its range.
    """
    s = config.schedule
    _one_of('schedule.name', s.name, ('steps', 'plateau', 'cosine', 'constant'))
    _one_of('schedule.warmup', s.warmup, ('none', 'linear', 'error'))
    if s.learning_rate <= 0:
        raise UserError(f'schedule.learning_rate must be positive, got {s.learning_rate}.')
    if list(s.boundaries) != sorted(set(s.boundaries)):
        raise UserError(f'schedule.boundaries must be in ascending order, got {s.boundaries}.')

    warmup_steps = s.warmup_steps if s.warmup == 'linear' else 0
    if s.name == 'steps':
        curve = optax.piecewise_constant_schedule(
            s.learning_rate, {int(step): s.factor for step in s.boundaries})
    elif s.name == 'cosine':
        if warmup_steps >= config.num_steps:
            raise UserError(f'schedule.warmup_steps ({warmup_steps}) must be below num_steps '
                             f'({config.num_steps}).')
        after = optax.cosine_decay_schedule(s.learning_rate, config.num_steps - warmup_steps)

        def curve(step):
            return after(jnp.maximum(step - warmup_steps, 0))
    else:
        curve = optax.constant_schedule(s.learning_rate)

    rules = {}
    if s.name == 'plateau':
        if not s.plateau_window:
            raise UserError('schedule.plateau_window must be set to a number of steps over which '
                             'the training error is averaged.')
        rules['plateau'] = plateau(s.factor, s.plateau_window, s.plateau_patience,
                                   s.plateau_threshold, s.plateau_min_factor)
    if s.warmup == 'error':
        rules['warmup'] = error_warmup(s.warmup_learning_rate / s.learning_rate, s.warmup_error,
                                       s.warmup_window)

    def init():
        return {name: rule.init() for name, rule in rules.items()}

    def update(state, step, error):
        rate = jnp.asarray(curve(step), jnp.float32)
        if warmup_steps:
            rate *= jnp.minimum((step + 1) / warmup_steps, 1)
        new_state = {}
        for name, rule in rules.items():
            new_state[name], factor = rule.update(state[name], step, error)
            rate *= factor
        return new_state, rate

    return Schedule(init, update)


def plateau(factor: float, window: int, patience: int, threshold: float,
            min_factor: float) -> Schedule:
    """The paper's rule (section 3.4): the rate falls when the error stops falling.

    The training error is averaged over windows of steps. When `patience` windows have passed
    without one that is better than the best by a relative `threshold`, the rate is multiplied by
    `factor`, though never below `min_factor` in all. `rate` is the product of the factors.
    """
    rule = optax.contrib.reduce_on_plateau(
        factor, patience=patience, rtol=threshold, accumulation_size=window, min_scale=min_factor)

    def update(state, step, error):
        _, state = rule.update(jnp.ones(()), state, value=error)
        return state, state.scale

    return Schedule(lambda: rule.init(jnp.ones(())), update)


class ErrorWarmup(NamedTuple):
    warm: jax.Array  # bool: the training error has been low enough
    total: jax.Array  # float32: sum of the errors in this window
    count: jax.Array  # int32: errors in this window


def error_warmup(factor: float, threshold: float, window: int) -> Schedule:
    """The paper's warm-up for CIFAR-110 (section 4.2): a small rate until the error falls.

    `rate` is `factor` until the training error, averaged over a window of steps, is below
    `threshold` percent for the first time; from then on it is 1.
    """

    def init():
        return ErrorWarmup(jnp.zeros((), bool), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(state, step, error):
        total, count = state.total + error, state.count + 1
        full = count == window
        warm = state.warm | (full & (total / window < threshold))
        state = ErrorWarmup(warm, jnp.where(full, 0.0, total), jnp.where(full, 0, count))
        return state, jnp.where(warm, 1.0, factor)

    return Schedule(init, update)


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f'{field} must be one of {", ".join(choices)}, got {value!r}.')
