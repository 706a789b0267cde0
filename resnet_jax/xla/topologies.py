"""TPU topologies by name, including absent ones, and published figures of their chips."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from resnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
      peak: bfloat16 FLOPs a second. Convolutions of float32 run at it too: by default, XLA rounds
        what enters the matrix units of a TPU to bfloat16.
      bandwidth: of the memory, bytes per second.
      memory: bytes.
      dimensions: of the network that links the chips of a slice.
      largest: chips of the largest slice.
      devices: that JAX sees in a chip, one or two, which share all of the above.
      options: that libtpu wants to know of this generation.
    """

    peak: float
    bandwidth: float
    memory: int
    dimensions: int
    largest: int
    devices: int = 1
    options: tuple[tuple[str, str], ...] = ()


# The tables 'System architecture' of https://cloud.google.com/tpu/docs/v3, …/v4 and so on.
CHIPS = {
    'v3': Chip(123e12, 900e9, 32 * 2**30, 2, 1024, devices=2),
    'v4': Chip(275e12, 1200e9, 32 * 2**30, 3, 4096, options=(('chip_config_name', 'megacore'),)),
    'v5e': Chip(197e12, 819e9, 16 * 2**30, 2, 256),
    'v5p': Chip(459e12, 2765e9, 95 * 2**30, 3, 6144),
    'v6e': Chip(918e12, 1638e9, 32 * 2**30, 2, 256),
    'tpu7x': Chip(2307e12, 7380e9, 192 * 2**30, 3, 9216, devices=2),
}
# Nothing is run: no chip is taken, since others may hold those of this machine, and libtpu need not
# look for the machine's place in a slice.
LIBTPU = {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_LOG_DIR': 'disabled',
          'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost'}
EXAMPLES = 'such as v5e:4x4, v5p:4x4x4 or cpu:8'


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: such as 'v5e:4x4' or 'cpu:8'.
      devices: of JAX; only to compile for, unless they are CPUs.
      device: what one of them is: 'chip', 'half chip' or 'simulated device'.
      peak: bfloat16 FLOPs a second of one device; None: not known.
      bandwidth: of one device's memory, bytes per second; None: not known.
      memory: bytes of one device.
    """

    name: str
    devices: list[jax.Device]
    device: str
    peak: float | None
    bandwidth: float | None
    memory: int


def create(name: str) -> Topology:
    """Creates the topology of this name.

    Args:
      name: 'v5e:4x4', a TPU generation and the chips along each dimension; or 'cpu:8', so many
        simulated CPU devices, which share this machine's memory.

    Raises:
      UserError: there is no such topology, or libtpu is missing.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
    if not match:
        raise UserError(f'--topology must be a TPU slice or simulated devices, {EXAMPLES}; '
                        f'got {name!r}.')
    kind, shape = match[1], tuple(int(size) for size in match[2].split('x'))
    if kind == 'cpu' and len(shape) == 1 and shape[0]:
        return _simulated(name, shape[0])
    if kind not in CHIPS:
        raise UserError(f'there is no topology {name!r}: those of {", ".join(CHIPS)} and cpu are '
                        f'known, {EXAMPLES}.')
    chip = CHIPS[kind]
    if len(shape) != chip.dimensions or not 0 < math.prod(shape) <= chip.largest:
        raise UserError(
            f'there is no topology {name!r}: a slice of {kind} has {chip.dimensions} dimensions '
            f'and from 1 to {chip.largest:,} chips.')
    part = chip.devices
    return Topology(name, _tpu_devices(name, shape, chip), 'half chip' if part == 2 else 'chip',
                    chip.peak / part, chip.bandwidth / part, chip.memory // part)


def _simulated(name: str, count: int) -> Topology:
    with contextlib.suppress(RuntimeError):  # JAX has started already, with what it has
        jax.config.update('jax_num_cpu_devices', count)
    devices = jax.devices('cpu')
    if len(devices) < count:
        raise UserError(f'--topology={name} needs {count} simulated devices, and JAX has started '
                        f'with {len(devices)} in this process.')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Topology(name, devices[:count], 'simulated device', None, None, memory // count)


def _tpu_devices(name: str, shape: tuple[int, ...], chip: Chip) -> list[jax.Device]:
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(f'--topology={name} is compiled by libtpu, which is not installed: run '
                        "`pip install -e '.[tpu]'`.")
    # A host has 2 x 2 chips, or all of a smaller slice.
    host = tuple(min(size, most) for size, most in zip((*shape, 1)[:3], (2, 2, 1), strict=True))
    if any(size % part for size, part in zip(shape, host, strict=False)):
        raise UserError(f'there is no topology {name!r}: a slice is made of hosts that have 2 x 2 '
                        'chips, so its first two dimensions must be even.')
    for name_and_value in LIBTPU.items():
        os.environ.setdefault(*name_and_value)
    try:
        return list(topologies.get_topology_desc(
            platform='tpu', topology_name=name, chips_per_host_bounds=host,
            **dict(chip.options)).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise UserError(f'libtpu knows no topology {name!r}: {" ".join(str(error).split())}') from (
            error)
