"""Gradients of a batch in parts that follow one another, which devices add up once per step."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax import models
from resnet_jax.data import Batch

# (network, part of the batch, key) -> gradients, running statistics and metrics.
Gradient = Callable[[nn.Module, Batch, jax.Array], tuple[Any, Any, Any]]


def accumulate(gradient: Gradient, model: nn.Module, batch: Batch, key: jax.Array,
               config: ConfigDict) -> tuple[Any, Any, Any]:
    """Computes the sums of a gradient function over a batch in parts.

    Virtual batches stay whole, so that the result is that of the whole batch: every part starts
    from the same running statistics, and theirs are averaged.

    If each device can compute its share of every part alone, devices add up their sums once, after
    the last part. Otherwise they do so in every part: if a virtual batch spans devices, if
    parameters are sharded, or if the loss draws random numbers for a whole part.

    Args:
      gradient: see `Gradient`; its gradients and metrics are sums over the images.
      model: the network, passed to `gradient`.
      batch: see `train_step`.
      key: of the step; each part has a key of its own.
      config: the fields `init`, `mesh`, `model` and `optimizer` are read.

    Returns:
      As `gradient`: sums of gradients and metrics, and averages of running statistics.
    """
    parts, unit = config.optimizer.accumulation_steps, unit_size(config)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (batch, key))
    in_parts = functools.partial(_in_parts, parts=parts, unit=unit)
    mesh = getattr(model, 'mesh', None)
    if mesh is None or mesh.size == 1 or not is_local(config, mesh.shape['data']) or (
            _draws(functools.partial(gradient, model), *inputs)):
        return in_parts(functools.partial(gradient, model), batch, key)
    alone = functools.partial(gradient, model.clone(mesh=None, num_devices=1))

    def on_device(batch, key):
        grads, batch_stats, metrics = in_parts(alone, batch, key)
        batch_stats = jax.tree.map(lambda x: x / mesh.shape['data'], batch_stats)
        return jax.lax.psum((grads, batch_stats, metrics), 'data')

    return jax.shard_map(on_device, mesh=mesh, in_specs=(P('data'), P()), out_specs=P(),
                         check_vma=False)(batch, key)


def unit_size(config: ConfigDict) -> int:
    """The number of images that stay together: a virtual batch, at most a part of the batch."""
    part = config.batch_size // config.optimizer.accumulation_steps
    return min(config.model.virtual_batch_size or 1, part)


def spans_devices(config: ConfigDict, shards: int) -> bool:
    """Whether batch statistics are taken over images of several devices.

    Args:
      config: the fields `batch_size`, `init`, `model` and `optimizer` are read.
      shards: devices along the batch.
    """
    images = config.batch_size // config.optimizer.accumulation_steps // shards
    size = config.model.virtual_batch_size
    normalised = models.family_of(config.model).normalises(config.model)
    return (shards > 1 and normalised and not config.init.freeze_bn
            and not (size and images % size == 0))


def spanning(config: ConfigDict, shards: int, device: str = 'device') -> str | None:
    """What batch statistics over several devices cost, and how to avoid it; None: they are not.

    Args:
      config, shards: see `spans_devices`.
      device: what a device is called.
    """
    if not spans_devices(config, shards):
        return None
    size, part = (config.model.virtual_batch_size,
                  config.batch_size // config.optimizer.accumulation_steps)
    images = part // shards
    best = max(n for n in range(1, min(size or images, images) + 1) if images % n == 0)
    named = 'the whole batch' if size is None or size >= part else f'{size} images'
    return (f'batch-norm statistics are taken over {named}, but a {device} has only {images} at a '
            'time, so every layer communicates. '
            f'--config.model.virtual_batch_size={best} would avoid this.')


def is_local(config: ConfigDict, shards: int) -> bool:
    """Whether the devices need not communicate within a part of a batch."""
    mesh, images = config.mesh, config.batch_size // config.optimizer.accumulation_steps // shards
    replicated = mesh.parameters == 'replicated' and not mesh.rules and mesh.model == 1
    return replicated and images % unit_size(config) == 0 and not spans_devices(config, shards)


def _in_parts(gradient, batch: Batch, key: jax.Array, *, parts: int, unit: int):
    """The sums over a batch, or over the share of it that one device has.

    Units are dealt out in turn, so that every device has its share of each part, and which images
    make up a part does not depend on the mesh.
    """
    def split(x):
        # [N] -> [N / (parts * unit), parts, unit] -> [parts, N / parts]
        x = x.reshape(-1, parts, unit, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

    def step(sums, part_and_key):
        grads, batch_stats, metrics = gradient(*part_and_key)
        batch_stats = jax.tree.map(lambda x: x / parts, batch_stats)
        new = (grads, batch_stats, metrics)
        return jax.tree.map(jnp.add, sums, new), None

    inputs = jax.tree.map(split, batch), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], inputs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, *first))
    return jax.lax.scan(step, zeros, inputs)[0]


def _draws(gradient, batch: Any, key: Any) -> bool:
    """Whether anything that a function of a batch and a key computes depends on the key."""
    program = jax.make_jaxpr(gradient)(batch, key).jaxpr
    return partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[1][-1]
