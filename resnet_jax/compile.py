"""Compiles the training step of a config for devices that need not exist; reports its costs.

  python -m resnet_jax.compile --config=configs/imagenet_r50.py --topology=v5e:4x4 \\
      --config.batch_size=2048 --config.model.dtype=bfloat16

Memory and the bytes of the collectives are per device; FLOPs, bytes and times are for a whole step.
Neither the data nor an accelerator is needed; for TPU slices, install libtpu with
`pip install -e '.[tpu]'`. Large networks take minutes. --json prints one JSON object. The exit
status is 1 if the step does not fit in memory.
"""

import json
import sys

import jax
from absl import flags

from resnet_jax import cli
from resnet_jax.training import compiled
from resnet_jax.xla import topologies

CONFIG = cli.config_flag()
JSON = cli.json_flag()
TOPOLOGY = cli.flag(
    flags.DEFINE_string, 'topology', None,
    'Devices to compile for: a TPU slice such as v5e:4x4 or v5p:4x4x4, or simulated ones such as '
    'cpu:8.')


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')  # before JAX looks for accelerators to take
    jax.config.update('jax_enable_compilation_cache', False)  # to compile is the point
    devices = topologies.create(TOPOLOGY.value)
    print(f'compiling for {len(devices.devices)} x {devices.devices[0].device_kind} …',
          file=sys.stderr, flush=True)
    result = compiled.report(CONFIG.value, devices)
    print(json.dumps(result) if JSON.value else compiled.table(result), flush=True)
    compiled.check_memory(result)


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE', '--topology=NAME'])
