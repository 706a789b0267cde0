"""The device mesh, and the sharding of each array of the training state."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.xla import backend

AXES = ('data', 'model')
FSDP_FIELDS = ('params', 'opt_state', 'ema')  # of the training state
FSDP_MIN_SIZE = 1024  # smaller arrays cost more to gather than they save


def mesh_shape(config: ConfigDict, num_devices: int) -> tuple[int, int]:
    """Devices along the axes 'data' and 'model'.

    Raises:
      UserError: there are not enough devices.
    """
    data, model = config.mesh.data, config.mesh.model
    needed = model if data == -1 else data * model
    if needed > num_devices:
        fields = f'mesh.model={model}'
        if data != -1:
            fields = f'mesh.data={data} times {fields}'
        raise UserError(f'{fields} needs at least {needed} devices, but {num_devices} '
                        f'{"is" if num_devices == 1 else "are"} available; the defaults '
                        'mesh.data=-1 and mesh.model=1 use all of them.')
    return num_devices // model if data == -1 else data, model


def create_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`, over the first of the devices.

    Args:
      config: the field `mesh` is read.
      devices: to choose from; None: all that JAX sees.

    Raises:
      UserError: there are too few; a job of several processes would not use all of them; or JAX
        cannot start, see `backend.devices`.
    """
    devices = backend.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    count = shape[0] * shape[1]
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(f'mesh.data x mesh.model is {count}, but a job of several processes must '
                        f'use all its {len(devices)} devices.')
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    slices = num_slices(devices[:count])
    if slices > 1:
        return Mesh(over_slices(shape, devices[:count], slices), AXES, axis_types=axis_types)
    return jax.make_mesh(shape, AXES, devices=devices[:count], axis_types=axis_types)


def num_slices(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices, which are connected by the network of the data center, these are of."""
    if devices[0].platform != 'tpu':
        return 1
    return len({getattr(device, 'slice_index', 0) for device in devices})


def over_slices(shape: tuple[int, int], devices: Sequence[jax.Device], slices: int) -> np.ndarray:
    """The devices of several slices, [data, model]: only the axis 'data' crosses slices.

    What is sharded over 'model' stays within a slice; gradients are summed over all of them.

    Raises:
      UserError: a slice does not hold whole rows of the mesh, or only a part of it would be used.
    """
    data, model = shape
    each = len(devices) // slices
    if data % slices or each % model or len({
            sum(other.slice_index == device.slice_index for other in devices)
            for device in devices}) > 1:
        raise UserError(f'mesh.data={data} and mesh.model={model} do not fit {slices} slices with '
                        f'{len(devices)} devices: mesh.data must be a multiple of the number of '
                        'slices, and mesh.model must divide the devices of each slice.')
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, model), (slices, 1), devices, allow_split_physical_axes=True)


def state_shardings(config: ConfigDict, mesh: Mesh, state: Any) -> Any:
    """A sharding for every array of the training state, by the path of the array.

    Paths look like 'params/stage1/block1/conv1/kernel'; those of the optimizer have 'opt_state/…'
    in front. The first rule whose regular expression matches part of the path applies. Its axes,
    one per dimension from the first, are names of mesh axes or None; arrays under 'blocks' have a
    leading dimension of blocks. If no rule matches, 'fsdp' splits arrays of at least FSDP_MIN_SIZE
    elements along their largest dimension that the size of the axis 'data' divides; everything else
    is replicated. The arrays of the optimizer and the moving averages have the paths and shapes of
    the parameters, so they are sharded alike.

    Args:
      config: `config.mesh` holds the rules.
      mesh: see `create_mesh`.
      state: a tree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      UserError: a rule does not fit the mesh or an array that it matches.
    """
    kind = config.mesh.parameters
    rules = [(re.compile(pattern), tuple(axes)) for pattern, axes in config.mesh.rules]

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        for pattern, axes in rules:
            if leaf.ndim and pattern.search(name):
                _check_rule(pattern.pattern, axes, name, leaf.shape, mesh)
                return NamedSharding(mesh, P(*axes))
        if kind == 'fsdp' and name.split('/')[0] in FSDP_FIELDS and leaf.size >= FSDP_MIN_SIZE:
            return NamedSharding(mesh, _split_largest(leaf.shape, mesh.shape['data']))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding, state)


def _split_largest(shape: tuple[int, ...], parts: int) -> P:
    fitting = [i for i, size in enumerate(shape) if size % parts == 0]
    if not fitting:
        return P()
    largest = max(fitting, key=lambda i: shape[i])
    return P(*('data' if i == largest else None for i in range(largest + 1)))


def _check_rule(pattern: str, axes: tuple, name: str, shape: tuple[int, ...], mesh: Mesh) -> None:
    unknown = [axis for axis in axes if axis is not None and axis not in AXES]
    if unknown:
        raise UserError(f'mesh.rules: {pattern!r} names the axis {unknown[0]!r}; the axes are '
                         f'{" and ".join(AXES)}.')
    if len(axes) > len(shape) or any(
            axis and size % mesh.shape[axis] for axis, size in zip(axes, shape, strict=False)):
        raise UserError(f'mesh.rules: {pattern!r} = {axes} cannot split {name} of shape {shape} '
                         f'over a mesh of {dict(mesh.shape)}.')
