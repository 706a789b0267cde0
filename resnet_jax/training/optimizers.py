"""Optimizers, composed from optax.

The learning rate is not part of an optimizer's state: a schedule computes it in every step (see
`resnet_jax.training.schedules`), and `update` takes it as the keyword argument `learning_rate`. So
it can be logged, and a schedule may depend on how the training goes.

To add one, write a function from `config.optimizer` to a list of transformations, and enter it in
the table OPTIMIZERS; its own settings are keyword arguments, which `optimizer.arguments` gives.
Every other name is looked up in optax and optax.contrib.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
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

    Raises:
      UserError: there is no such optimizer, or it does not take these arguments.
    """
    o = config.optimizer
    clip = [] if o.clip_norm is None else [optax.clip_by_global_norm(o.clip_norm)]
    optimizer = optax.with_extra_args_support(optax.chain(*clip, *_parts(o)))
    if config.init.freeze:
        optimizer = optax.partition(
            {False: optimizer, True: optax.set_to_zero()},
            functools.partial(frozen, patterns=config.init.freeze))
    return optimizer


def _parts(o: ConfigDict) -> list[optax.GradientTransformation]:
    """The transformations of `optimizer.name` with `optimizer.arguments`."""
    arguments = {name: value for name, value in o.arguments}
    make = OPTIMIZERS.get(o.name, functools.partial(of_optax, name=o.name))
    if o.name in OPTIMIZERS:
        check_arguments(o.name, arguments, set(inspect.signature(make).parameters) - {'o'})
    if o.name in OPTIMIZERS and not arguments:
        return make(o)
    try:
        parts = make(o, **arguments)
        _try(optax.with_extra_args_support(optax.chain(*parts)))
    except UserError:
        raise
    except Exception as error:  # whatever an optimizer makes of its arguments
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
        raise UserError(f'optimizer.name={o.name} with optimizer.arguments={arguments} cannot be '
                        f'used: {reason}.') from error
    return parts


def check_arguments(name: str, arguments: Mapping[str, Any], known: set[str]) -> None:
    """Raises UserError if an optimizer does not take these arguments."""
    for argument in arguments:
        if argument not in known:
            takes = f'takes {", ".join(sorted(known))}' if known else 'takes no arguments'
            raise UserError(f'optimizer.arguments: {name} has no argument {argument!r}; it '
                            f'{takes}.')


def _try(optimizer: optax.GradientTransformationExtraArgs) -> None:
    """Traces a step on a small layer; raises what the optimizer raises."""
    params = {'kernel': jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32),
              'bias': jax.ShapeDtypeStruct((8,), jnp.float32)}
    state = jax.eval_shape(optimizer.init, params)
    _, after = jax.eval_shape(
        lambda g, s, p, rate: optimizer.update(g, s, p, learning_rate=rate),
        params, state, params, jax.ShapeDtypeStruct((), jnp.float32))
    before: Any = jax.tree.structure(state)
    if before != jax.tree.structure(after):
        raise ValueError('its state changes form from step to step')


def sgd(o: ConfigDict) -> list[optax.GradientTransformation]:
    """Gradient descent with momentum, in the form of the paper (Caffe) or of PyTorch.

    'paper': v <- momentum * v + rate * (g + decay * w), w <- w - v.
    'pytorch': v <- momentum * v + g + decay * w, w <- w - rate * v.
    They differ in the steps after a change of the learning rate (Goyal et al., 2017, remark 2).
    """
    rate, momentum = scale_by_learning_rate(), optax.trace(o.momentum, nesterov=o.nesterov)
    last = [rate, momentum] if o.momentum_form == 'paper' else [momentum, rate]
    return [decayed_weights(o), *last]


def lars(o: ConfigDict, trust_coefficient: float = 0.001) -> list[optax.GradientTransformation]:
    """LARS; biases and batch normalisation are not rescaled. See `scale_by_lars`."""
    local_rate = optax.masked(
        per_layer(scale_by_lars(trust_coefficient, o.weight_decay)), weights_only)
    others_decay = optax.add_decayed_weights(
        o.weight_decay if o.decay_bn_and_bias else 0.0, no_weights)
    return [others_decay, local_rate, scale_by_learning_rate(),
            optax.trace(o.momentum, nesterov=o.nesterov)]


def adamw(o: ConfigDict, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
          ) -> list[optax.GradientTransformation]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return [optax.scale_by_adam(b1, b2, eps), decayed_weights(o), scale_by_learning_rate()]


def lamb(o: ConfigDict, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6,
         ) -> list[optax.GradientTransformation]:
    """LAMB (Y. You et al., "Large Batch Optimization for Deep Learning", 2020, algorithm 2).

    As in timm, what is not decayed is not rescaled either; timm also clips the global norm of the
    gradient at 1, which is `optimizer.clip_norm` here.
    """
    rescaled = per_layer(optax.scale_by_trust_ratio())
    return [optax.scale_by_adam(b1, b2, eps), decayed_weights(o),
            rescaled if o.decay_bn_and_bias else optax.masked(rescaled, weights_only),
            scale_by_learning_rate()]


OPTIMIZERS = {'sgd': sgd, 'lars': lars, 'lamb': lamb, 'adamw': adamw}


def of_optax(o: ConfigDict, name: str, **arguments: Any) -> list[optax.GradientTransformation]:
    """An optimizer of optax or optax.contrib, by name.

    It gets `optimizer.weight_decay`; where it has no decay of its own, the decay is added to the
    gradient, as in PyTorch. It sees stacked layers as one.

    Args:
      o: the section `optimizer` of a config.
      name: of a function with an argument `learning_rate`.
      **arguments: of this function.

    Raises:
      UserError: there is no such function, or it does not take these arguments.
    """
    known = _optax_optimizers()
    if name not in known:
        close = difflib.get_close_matches(str(name), [*OPTIMIZERS, *known], 1)
        hint = f' Did you mean {close[0]}?' if close else ''
        raise UserError(f'optimizer.name must be one of {", ".join(OPTIMIZERS)}, or an optimizer '
                        f'of optax such as adamax or lion, got {name!r}.{hint}')
    make, parameters = known[name], set(inspect.signature(known[name]).parameters)
    masks = parameters & {'mask', 'weight_decay_mask'}
    check_arguments(name, arguments, parameters - {'learning_rate', 'weight_decay', *masks})
    mask = None if o.decay_bn_and_bias else weights_only
    if 'weight_decay' not in parameters:
        decay = [decayed_weights(o)]
    elif mask is None or masks:
        decay = []
        arguments = {**arguments, 'weight_decay': o.weight_decay, **dict.fromkeys(masks, mask)}
    else:
        raise UserError(f'optimizer.name={name} decays every weight: set '
                        'optimizer.decay_bn_and_bias to true.')

    def update(updates, state, params=None, *, learning_rate, **_):
        step = optax.with_extra_args_support(make(learning_rate=learning_rate, **arguments))
        return step.update(updates, state, params)

    init = make(learning_rate=1.0, **arguments).init
    return [*decay, optax.GradientTransformationExtraArgs(init, update)]


def _optax_optimizers() -> dict[str, Callable]:
    """The functions of optax and optax.contrib that take a learning rate, by name."""
    found: dict[str, Callable] = {}
    for module in (optax.contrib, optax):
        for name, value in inspect.getmembers(module, inspect.isfunction):
            if 'learning_rate' in inspect.signature(value).parameters and not name.startswith(
                    ('_', 'scale_by_')):
                found[name] = value
    return found


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


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path holds those of several blocks along its first axis."""
    return any(getattr(key, 'key', None) == STACKED for key in path)


def weights_only(params: Any) -> Any:
    """True for convolution and dense kernels; False for biases, gammas and betas."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def no_weights(params: Any) -> Any:
    """True where `weights_only` is False."""
    return jax.tree.map(lambda is_weight: not is_weight, weights_only(params))
