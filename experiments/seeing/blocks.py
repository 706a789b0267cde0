"""Splits a trained network into blocks that can be run, deleted and swapped.

A block of the paper computes relu(F(x) + s(x)) (equation 1 and figure 2). Here F is called its
branch and s(x), which is x unless the shape changes, what it carries.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import models
from resnet_jax.data.sizes import pair
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import STACKED, Shortcut
from resnet_jax.tasks.classification.classifier import Classifier

BATCH_SIZE = 100  # images that are computed at once: one program for any number of them


class Block(NamedTuple):
    """One block of a network.

    Attributes:
      name: stage and number in the stage, from 1: '2.1'.
      stage: from 1.
      module: the block alone; blocks of one shape share it, and with it the compiled program.
      variables: its parameters and running statistics.
      keeps_shape: whether the output has the shape of the input.
    """

    name: str
    stage: int
    module: nn.Module
    variables: Any
    keeps_shape: bool


class Pass(NamedTuple):
    """What a block makes of images; each float32 [N, H', W', C'].

    Attributes:
      carried: s(x), in front of the addition. A plain network has no shortcut; its input in the
        shape of the output, by the shortcut without parameters (option A), stands in for it, so
        that the same questions can be asked of both.
      branch: F(x), behind its last batch normalisation.
      output: relu(F(x) + s(x)); of a plain block relu(F(x)).
    """

    carried: jax.Array
    branch: jax.Array
    output: jax.Array


@functools.lru_cache(maxsize=8)  # the same modules again, and so the same compiled programs
def blocks(network: Classifier) -> tuple[Block, ...]:
    """The blocks of a network, in order, scanned or unrolled.

    Raises:
      UserError: the network has none.
    """
    modules, shapes = {}, {}

    def listen(call, args, kwargs, context):
        path = context.module.path
        output = call(*args, **kwargs)
        if context.method_name == '__call__' and len(path) == 2 and path[0].startswith('stage'):
            modules.setdefault(path, context.module.clone(parent=None, name=None))
            shapes.setdefault(path, (args[0].shape, output.shape))
        return output

    data = network.config.data
    images = np.zeros((1, *pair(data.image_size or 32), data.channels), np.float32)
    with nn.intercept_methods(listen):
        jax.eval_shape(functools.partial(network.model.apply, train=False), network.variables,
                       images)
    if not modules:
        raise UserError(f'{models.title(network.config.model)} has no blocks to look at; give a '
                        'residual network or its plain twin.')
    found = []
    for (stage, part), module in modules.items():
        variables = {kind: tree[stage][part] for kind, tree in network.variables.items()}
        stacked = part == STACKED
        for i in range(len(jax.tree.leaves(variables)[0]) if stacked else 1):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], variables) if stacked else variables
            number = int(stage.removeprefix('stage'))
            shape_in, shape_out = shapes[stage, part]
            found.append(Block(f'{number}.{stacked + i + 1}', number, module, own,
                               shape_in == shape_out))
    return tuple(found)


def run(module: nn.Module, variables: Any, x: jax.Array) -> Pass:
    """What a block makes of its input float [N, H, W, C]. Pure."""
    found = {}

    def listen(call, args, kwargs, context):
        output = call(*args, **kwargs)
        path = context.module.path
        if context.method_name == '__call__' and len(path) == 1:
            # The layers of the branch come in order, so that the last one stays.
            found['branch' if path[0].startswith(('norm', 'conv')) else path[0]] = output
        return output

    with nn.intercept_methods(listen):
        output = module.apply(variables, x, train=False)
    carried = found['shortcut'] if module.shortcut is not None else _identity(module, x, output)
    return Pass(*(part.astype(jnp.float32) for part in (carried, found['branch'], output)))


def _identity(module, x, output):
    """The input in the shape of the output, without parameters (option A)."""
    return Shortcut('A', output.shape[-1], module.stride, None, None).apply({}, x, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _output(module, variables, x):
    return module.apply(variables, x, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _deleted(module, variables, x):
    carried = run(module, variables, x).carried
    return carried if module.preactivated else nn.relu(carried)


def forward(block: Block, x: np.ndarray) -> np.ndarray:
    """The block's output of [N, H, W, C], for any N."""
    return in_batches(functools.partial(_output, block.module, block.variables), x)


def delete(block: Block, x: np.ndarray) -> np.ndarray:
    """The output where the branch adds nothing: relu(s(x)); see `Pass.carried`."""
    return in_batches(functools.partial(_deleted, block.module, block.variables), x)


def classify(network: Classifier, x: np.ndarray) -> np.ndarray:
    """What the last layer makes of the last block's output: float32 [N, classes]."""
    head = network.variables['params']['head']
    return np.asarray(x, np.float32).mean((1, 2)) @ head['kernel'] + head['bias']


def in_batches(function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """A function of N images, called on batches of one size; the last one is padded.

    Args:
      function: gives a tree of arrays with N rows each.
      arrays: [N, ...] each.

    Returns:
      The same tree, numpy arrays of N rows.
    """
    outputs = []
    for start in range(0, len(arrays[0]), BATCH_SIZE):
        batch = [array[start:start + BATCH_SIZE] for array in arrays]
        missing = BATCH_SIZE - len(batch[0])
        if missing:
            batch = [np.concatenate([part, np.repeat(part[-1:], missing, 0)]) for part in batch]
        output = function(*batch)
        outputs.append(jax.tree.map(lambda leaf, n=BATCH_SIZE - missing: np.asarray(leaf)[:n],
                                    output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def error(network: Classifier, x: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 error in percent, from the last block's output."""
    return 100 * float(np.mean(classify(network, x).argmax(1) != labels))


def run_all(network_blocks: Sequence[Block], x: np.ndarray) -> np.ndarray:
    """The last block's output, from the first one's input."""
    for block in network_blocks:
        x = forward(block, x)
    return x
