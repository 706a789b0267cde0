"""Size and cost of the network of a config, by shape inference alone."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend as jex
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import tasks
from resnet_jax.data import image_size
from resnet_jax.tasks import Part
from resnet_jax.training import choices, optimizers
from resnet_jax.training.program import completed, create_model

FLOPS_A_MULTIPLY_ADD = 2  # a multiplication and an addition


def summarize(config: ConfigDict) -> dict[str, Any]:
    """Size and cost of the network, by shape inference.

    Returns:
      'parameters': their number. 'multiply_adds': of convolutions and dense layers, for one image.
      'train_flops': for one image in training, 6 per multiply-add: the forward pass, the gradient
      of the activations and that of the weights. Parts of a task that has `parts` take less where
      they are frozen.
      'stages': name and shape of every feature map [H, W, C], and of the output 'head' [C], for one
      image; of several outputs, 'head/NAME' each. Where the task has `parts`, of their outputs.
      'parts': by the groups of the task's `parts`, 'multiply_adds' of one run, and 'train_runs' and
      'test_runs' for an image; {} without parts.
      'memory': bytes of 'parameters', 'batch_stats' and 'optimizer_state'.

    Raises:
      UserError: a field of the config is wrong.
    """
    config, _ = choices.choose(completed(config))
    model, variables, images = shapes(config)
    frozen = optimizers.frozen(variables['params'], config.init.freeze)
    parts = tasks.get(config.task).parts
    return {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
        **(_whole(model, variables, images) if parts is None else
           _in_parts(parts(model, variables, images), variables, frozen)),
        'memory': {
            'parameters': _bytes(variables['params']),
            'batch_stats': _bytes(variables.get('batch_stats', {})),
            'optimizer_state': _bytes(
                jax.eval_shape(optimizers.create(config).init, variables['params'])),
        },
    }


def _whole(model: nn.Module, variables: Any, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """The costs of a network that runs once; see `summarize`."""
    def forward(variables, images):
        return model.apply(variables, images, train=False)

    maps = jax.eval_shape(functools.partial(model.apply, train=False, method='features'),
                          variables, images)
    head, count = traced(forward, variables, images)
    outputs = [*((stage, maps[stage]) for stage in model.stages), *_named('head', head)]
    return {'multiply_adds': count, 'train_flops': 3 * FLOPS_A_MULTIPLY_ADD * count,
            'stages': _described(outputs), 'parts': {}}


def _in_parts(parts: Sequence[Part], variables: Any, frozen: Any) -> dict[str, Any]:
    """The costs of a network that runs in parts; see `summarize`."""
    outputs, total, flops, reached = [], 0, 0, False
    groups: dict[str, Any] = {}
    for part in parts:
        output, count = traced(part.function, variables, part.inputs)
        outputs += _named(part.name, output)
        group = groups.setdefault(part.group, {
            'multiply_adds': 0, 'train_runs': part.runs[0], 'test_runs': part.runs[1]})
        group['multiply_adds'] += count
        trained = not all(jax.tree.leaves(frozen[part.parameters]))
        reached |= trained  # by the gradient, which ends at the first parameters that are trained
        flops += FLOPS_A_MULTIPLY_ADD * part.runs[0] * count * (1 + trained + reached)
        total += part.runs[1] * count
    return {'multiply_adds': total, 'train_flops': flops, 'stages': _described(outputs),
            'parts': groups}


def _described(outputs: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [{'name': name, 'shape': list(output.shape[1:])} for name, output in outputs]


def _named(name: str, tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
            for path, leaf in jax.tree.leaves_with_path({name: tree})]


def shapes(config: ConfigDict) -> tuple[nn.Module, Any, jax.ShapeDtypeStruct]:
    """The network, and the shapes of its variables and of one image."""
    model = create_model(config)
    images = jax.ShapeDtypeStruct(
        (1, *image_size(config.data), config.data.channels), jnp.float32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(images.shape), train=False))
    return model, variables, images


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def traced(function: Callable, *args: Any) -> tuple[Any, int]:
    """The shapes that a function returns, and its multiply-adds in convolutions and products.

    Args:
      function: traced, never run.
      *args: arrays or `jax.ShapeDtypeStruct`.
    """
    program, output = jax.make_jaxpr(function, return_shape=True)(*args)
    return output, _count(program.jaxpr)


def _count(jaxpr: jex.core.Jaxpr) -> int:
    total = 0
    eqn: Any  # the shapes of its variables are known, as all are arrays
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'conv_general_dilated':
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
        elif eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            shape = eqn.invars[0].aval.shape
            total += (math.prod(eqn.outvars[0].aval.shape)
                      * math.prod(shape[axis] for axis in contracted))
        else:
            repeats = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
            total += repeats * sum(_count(inner) for inner in _inner_jaxprs(eqn))
    return total


def _inner_jaxprs(eqn) -> list[jex.core.Jaxpr]:
    """The program that a call, a scan or a custom derivative runs."""
    for name in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
        if name in eqn.params:
            inner = eqn.params[name]
            return [getattr(inner, 'jaxpr', inner)]
    return []
