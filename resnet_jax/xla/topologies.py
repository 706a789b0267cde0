"""Topologies by name, including absent ones, and published figures of their chips."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from resnet_jax.errors import UserError
from resnet_jax.xla import h100
from resnet_jax.xla.networks import Level


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip.

    Attributes:
      peak: bfloat16 FLOPs a second. Convolutions of float32 run at it too: by default, XLA rounds
        what enters the matrix units of a TPU to bfloat16.
      bandwidth: of the memory, bytes per second.
      memory: bytes.
      dimensions: of the network that links the chips of a slice.
      largest: chips of the largest slice.
      link: bytes per second along one dimension, both directions together.
      slices: bytes per second of a chip to other slices, through the data-center network.
      ring: a dimension of a multiple of that many chips is closed to a ring.
      devices: that JAX sees in a chip, one or two, which share all of the above.
      options: that libtpu wants to know of this generation.
    """

    peak: float
    bandwidth: float
    memory: int
    dimensions: int
    largest: int
    link: float
    slices: float
    ring: int
    devices: int = 1
    options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published figures of one GPU in a cluster.

    Attributes:
      peak: bfloat16 FLOPs per second, without sparsity.
      bandwidth: of the memory, bytes per second.
      memory: bytes.
      node: GPUs of a machine, linked by NVLink.
      link: bytes per second of a GPU to the others of its machine, in one direction.
      network: bytes per second of a GPU to other machines, in one direction.
    """

    peak: float
    bandwidth: float
    memory: int
    node: int
    link: float
    network: float


# The tables 'System architecture' of https://cloud.google.com/tpu/docs/v3, …/v4 and so on; `link`,
# `slices` and `ring` from J. Austin et al., "How to Scale Your Model", 2025, 'TPU specs', which has
# no `slices` for v3 and no `ring` for v3 and tpu7x: those are assumed.
CHIPS = {
    'v3': Chip(123e12, 900e9, 32 * 2**30, 2, 1024, 200e9, 6.25e9, 32, devices=2),
    'v4': Chip(275e12, 1200e9, 32 * 2**30, 3, 4096, 90e9, 6.25e9, 4,
               options=(('chip_config_name', 'megacore'),)),
    'v5e': Chip(197e12, 819e9, 16 * 2**30, 2, 256, 90e9, 3.125e9, 16),
    'v5p': Chip(459e12, 2765e9, 95 * 2**30, 3, 6144, 180e9, 6.25e9, 4),
    'v6e': Chip(918e12, 1638e9, 32 * 2**30, 2, 256, 180e9, 12.5e9, 16),
    'tpu7x': Chip(2307e12, 7380e9, 192 * 2**30, 3, 9216, 180e9, 12.5e9, 4, devices=2),
}
# 'GPUs' of the same book: NVLink 450 GB/s per GPU, InfiniBand 400 GB/s per machine. The
# bandwidth of the memory is the driver's figure.
GPUS = {'h100': Gpu(989e12, 3352.32e9, 80 * 10**9, 8, 450e9, 50e9)}
CLOUD_NAMES = {'v5litepod': 'v5e'}  # of the same number of chips
HOP_SECONDS = 1e-6  # over a link between TPUs, whatever the size; the same book
# Nothing is run: no chip is taken, since others may hold those of this machine, and libtpu need not
# look for the machine's place in a slice.
LIBTPU = {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_LOG_DIR': 'disabled',
          'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost'}
EXAMPLES = 'such as v5e:4x4, v5p:4x4x4, h100:16 or cpu:8'


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: such as 'v5e:4x4', 'h100:16' or 'cpu:8'.
      count: of devices.
      device: what one of them is: 'chip', 'half chip', 'GPU' or 'simulated device'.
      peak: bfloat16 FLOPs a second of one device; None: not known.
      bandwidth: of one device's memory, bytes per second; None: not known.
      memory: bytes of one device.
      network: what links the devices, from the inside out; (): not known.
      devices: of JAX; only to compile for, unless they are CPUs. See `create`.
      compiler_options: that these devices need.
    """

    name: str
    count: int
    device: str
    peak: float | None
    bandwidth: float | None
    memory: int
    network: tuple[Level, ...] = ()
    devices: tuple[jax.Device, ...] = ()
    compiler_options: dict[str, str | bool] | None = None


def describe(name: str) -> Topology:
    """Finds the figures of a topology, without its devices.

    Args:
      name: 'v5e:4x4', a TPU generation and the chips along each dimension; 'v5e:2*4x4', two such
        slices; 'h100:16', so many GPUs in machines of eight; or 'cpu:8', so many simulated CPU
        devices, which share this machine's memory.

    Raises:
      UserError: there is no such topology.
    """
    if by_count := re.fullmatch(r'(?:(\d+)\*)?(\w+)-(\d+)', name):
        slices, kind, count = by_count.groups()
        raise UserError(f'the topology {name} is written '
                        f'{standard(kind, int(count), int(slices or 1))}.')
    match = re.fullmatch(r'(\w+):(?:(\d+)\*)?(\d+(?:x\d+)*)', name)
    if not match:
        raise UserError(f'a topology is a TPU slice, GPUs or simulated devices, {EXAMPLES}; '
                        f'got {name!r}.')
    kind, slices = match[1], int(match[2] or 1)
    shape = tuple(int(size) for size in match[3].split('x'))
    if kind in CHIPS and slices:
        return _of_tpus(name, CHIPS[kind], slices, shape)
    if len(shape) == 1 and shape[0] and match[2] is None:
        if kind == 'cpu':
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
            return Topology(name, shape[0], 'simulated device', None, None, memory // shape[0])
        if kind in GPUS:
            return _of_gpus(name, GPUS[kind], shape[0])
    raise UserError(f'there is no topology {name!r}: those of {", ".join((*CHIPS, *GPUS))} and cpu '
                    f'are known, {EXAMPLES}.')


def create(name: str) -> Topology:
    """Creates the topology of this name, with devices to compile for.

    Args:
      name: see `describe`.

    Raises:
      UserError: there is no such topology, or libtpu or JAX's plugin for CUDA is missing.
    """
    topology, kind = describe(name), name.partition(':')[0]
    if kind in CHIPS:
        slices, _, sizes = name.partition(':')[2].rpartition('*')
        shape = tuple(int(size) for size in sizes.split('x'))
        return dataclasses.replace(
            topology, devices=_tpu_devices(name, shape, CHIPS[kind], int(slices or 1)))
    if kind in GPUS:
        return dataclasses.replace(topology, devices=_gpu_devices(name, GPUS[kind], topology.count),
                                   compiler_options=h100.COMPILER_OPTIONS)
    return dataclasses.replace(topology, devices=_simulated(name, topology.count))


def standard(kind: str, count: int, slices: int = 1) -> str:
    """The name of the topology that a cloud offers for a number of chips, such as 'v5e:16x16'.

    TPU slices of a power of two chips are as close to a square or a cube as possible.

    Args:
      kind: a TPU generation or a GPU.
      count: of the chips of a slice, or of all GPUs.
      slices: of TPUs, which the data-center network joins.

    Raises:
      UserError: there is none.
    """
    if slices < 1:
        raise UserError(f'the number of slices must be at least 1; got {slices}*{kind}-{count}.')
    if kind in GPUS and slices > 1:
        raise UserError(f'there are no slices of GPUs: give the number of all GPUs, '
                        f'{kind}-{slices * count}, instead of {slices}*{kind}-{count}.')
    if kind in GPUS:
        if not count:
            raise UserError(f'the number of GPUs must be at least 1; got {kind}-{count}.')
        return describe(f'{kind}:{count}').name
    if kind in CLOUD_NAMES:
        raise UserError(f"what Google Cloud calls {kind}-{count} is called "
                        f'{CLOUD_NAMES[kind]}-{count} here.')
    if kind not in CHIPS:
        raise UserError(f'there is no accelerator {kind!r}; known are '
                        f'{", ".join((*CHIPS, *GPUS))}.')
    chip, power = CHIPS[kind], max(count, 1).bit_length() - 1
    if count != 2**power or not 4 <= count <= chip.largest:
        raise UserError(f'there is no slice {kind}-{count}: the number of chips must be a power of '
                        f'two from 4 to {chip.largest:,}.')
    least, larger = divmod(power, chip.dimensions)
    sizes = [2**(least + (axis >= chip.dimensions - larger)) for axis in range(chip.dimensions)]
    if 1 in sizes:  # a single host, 2x2x1
        sizes.reverse()
    joined = f'{slices}*' if slices > 1 else ''
    return f'{kind}:{joined}{"x".join(map(str, sizes))}'


def difference(name: str, count: int) -> str | None:
    """What it means that a run has other devices than a config was written for; None: it has not.

    Args:
      name: of the topology of the config; see `describe`.
      count: of the devices of the run.

    Raises:
      UserError: there is no such topology.
    """
    expected = describe(name)
    if expected.count == count:
        return None
    return (f'the config is for {expected.count:,} {expected.device}s ({name}), but this run has '
            f'{count:,}; the batch stays the same. To derive another one, name the devices of this '
            'run in the argument of --config.')


def _of_tpus(name: str, chip: Chip, slices: int, shape: tuple[int, ...]) -> Topology:
    chips, part = math.prod(shape), chip.devices
    if len(shape) != chip.dimensions or not 0 < chips <= chip.largest:
        raise UserError(
            f'there is no topology {name!r}: a slice of {name.partition(":")[0]} has '
            f'{chip.dimensions} dimensions and from 1 to {chip.largest:,} chips.')
    rings = [(size, size % chip.ring == 0) for size in shape if size > 1]
    # Without a link back, only half of the two directions helps.
    bandwidth = sum(chip.link if ring else chip.link / 2 for _, ring in rings)
    hops = sum(size // 2 if ring else size - 1 for size, ring in rings)
    network = (Level(chips, bandwidth, hops * HOP_SECONDS), Level(slices, chip.slices))
    return Topology(name, slices * chips * part, 'half chip' if part == 2 else 'chip',
                    chip.peak / part, chip.bandwidth / part, chip.memory // part,
                    tuple(level for level in network if level.size > 1))


def _of_gpus(name: str, gpu: Gpu, count: int) -> Topology:
    nodes = max(count // gpu.node, 1)
    if count > gpu.node and count % gpu.node:
        raise UserError(f'there is no topology {name!r}: more than {gpu.node} GPUs must be a '
                        f'multiple of {gpu.node}, the GPUs of a machine.')
    network = (Level(count // nodes, gpu.link), Level(nodes, gpu.network))
    return Topology(name, count, 'GPU', gpu.peak, gpu.bandwidth, gpu.memory,
                    tuple(level for level in network if level.size > 1))


def _gpu_devices(name: str, gpu: Gpu, count: int) -> tuple[jax.Device, ...]:
    nodes = max(count // gpu.node, 1)
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # it would look for a GPU
    try:
        return tuple(topologies.get_topology_desc(
            platform='cuda', target_config=h100.TARGET,
            topology=f'1x{nodes}x{count // nodes}').devices)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f'--topology={name} is compiled by XLA for CUDA, which cannot be used here '
                        f'({" ".join(str(error).split())}): run '
                        "`pip install -e '.[cuda]'`.") from error


def _simulated(name: str, count: int) -> tuple[jax.Device, ...]:
    with contextlib.suppress(RuntimeError):  # JAX has started already, with what it has
        jax.config.update('jax_num_cpu_devices', count)
    devices = jax.devices('cpu')
    if len(devices) < count:
        raise UserError(f'--topology={name} needs {count} simulated devices, and JAX has started '
                        f'with {len(devices)} in this process.')
    return tuple(devices[:count])


def _tpu_devices(name: str, shape: tuple[int, ...], chip: Chip,
                 slices: int) -> tuple[jax.Device, ...]:
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
        return tuple(topologies.get_topology_desc(
            platform='tpu', topology_name=f'{name.partition(":")[0]}:{"x".join(map(str, shape))}',
            chips_per_host_bounds=host, num_slices=slices, **dict(chip.options)).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise UserError(f'libtpu knows no topology {name!r}: {" ".join(str(error).split())}') from (
            error)
