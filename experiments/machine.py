"""The cores and GPUs of the machine, and how the parallel runs of a sweep share them."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from resnet_jax.distributed.cores import core_numbers
from resnet_jax.distributed.sharding import mesh_shape
from resnet_jax.errors import UserError

LOOK = '''
import jax, json
devices = jax.local_devices()
print(json.dumps([jax.default_backend(), devices[0].device_kind, len(devices)]))
'''


class Machine(NamedTuple):
    """This machine, as JAX sees it.

    Attributes:
      backend: 'cpu', 'gpu' or 'tpu'.
      kind: of its devices, or of the processor.
      num_devices: that a run sees.
      cores: of the processor that this process may use.
    """

    backend: str
    kind: str
    num_devices: int
    cores: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """For the ledger."""
        return {'kind': self.kind, 'devices': self.num_devices, 'cores': len(self.cores)}


class Share(NamedTuple):
    """What one of several runs at a time gets.

    Attributes:
      environment: variables to set.
      cores: of the processor.
    """

    environment: dict[str, str]
    cores: tuple[int, ...]


def look() -> Machine:
    """Asks JAX, in another process: this one must not take hold of an accelerator."""
    process = subprocess.run([sys.executable, '-c', LOOK], text=True, capture_output=True)
    if process.returncode:
        raise UserError(f'JAX finds no device: {process.stderr.strip().splitlines()[-1]}')
    backend, kind, count = json.loads(process.stdout.splitlines()[-1])
    return Machine(backend, _processor() if backend == 'cpu' else kind, count, core_numbers())


def _processor() -> str:
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else 'cpu'


def share_out(machine: Machine, parallel: int | None, configs: Sequence[Any]) -> list[Share]:
    """Divides the machine between runs at a time.

    On a CPU, runs of one core each side by side get more done than one run on all cores: a step of
    ResNet-20 on digits took 47 ms of processor time on one core and 51 ms on two, and imports and
    compilation hardly use a second one.

    Args:
      machine: to divide.
      parallel: runs at a time; None: one for each core, or for as many GPUs as the configs ask
        for; on TPUs one.
      configs: of the runs.

    Returns:
      One share for each run at a time.

    Raises:
      UserError: there are fewer devices than that.
    """
    needed = max(mesh_shape(config, machine.num_devices)[0] * config.mesh.model
                 if config.mesh.data != -1 else config.mesh.model for config in configs)
    if parallel is None:
        parallel = {'cpu': len(machine.cores),
                    'gpu': max(1, machine.num_devices // needed)}.get(machine.backend, 1)
    parallel = min(parallel, len(configs))
    if machine.backend == 'cpu':
        if parallel > len(machine.cores):
            raise UserError(f'--parallel={parallel} runs at a time need as many cores; there are '
                            f'{len(machine.cores)}.')
        return [Share({}, machine.cores[i::parallel]) for i in range(parallel)]
    if parallel == 1:
        return [Share({}, machine.cores)]
    if machine.backend != 'gpu':
        raise UserError('a TPU host runs one command at a time: leave --parallel out, or start the '
                        'commands that --dry_run prints on separate hosts.')
    each = machine.num_devices // parallel
    if each < needed:
        raise UserError(f'--parallel={parallel} runs of {needed} devices each need more than the '
                        f'{machine.num_devices} available.')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else [str(i) for i in range(machine.num_devices)]
    return [Share({'CUDA_VISIBLE_DEVICES': ','.join(names[i * each:(i + 1) * each])},
                  machine.cores) for i in range(parallel)]


def devices_of(machine: Machine, shares: Sequence[Share]) -> int:
    """Devices that a run sees."""
    return machine.num_devices if machine.backend == 'cpu' else machine.num_devices // len(shares)
