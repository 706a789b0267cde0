"""Compiles the training step of a config for devices that need not exist; reports its costs.

  python -m resnet_jax.compile --config=configs/imagenet_r50.py --topology=v5e:4x4 \\
      --config.batch_size=2048 --config.model.dtype=bfloat16

Memory and the bytes of the collectives are per device; FLOPs, bytes and times are for a whole step.
Neither the data nor an accelerator is needed; for TPU slices, install libtpu with
`pip install -e '.[tpu]'`. Large networks take minutes. --json prints one JSON object. The exit
status is 1 if the step does not fit in memory. --sweep=v5e:4x4,8x8,16x16 predicts images per second
and efficiency on several slices.
"""

import json
import sys

import jax
from absl import flags

from resnet_jax import cli
from resnet_jax.config import derived_table
from resnet_jax.errors import UserError
from resnet_jax.training import compiled, scaling
from resnet_jax.xla import topologies

CONFIG = cli.config_flag()
JSON = cli.json_flag()
TOPOLOGY = cli.flag(
    flags.DEFINE_string, 'topology', None,
    'Devices to compile for: a TPU slice such as v5e:4x4 or v5p:4x4x4, two of them, v5e:2*4x4, '
    'GPUs such as h100:16, or simulated devices such as cpu:8. By default, the topology of '
    'the config.')
SWEEP = cli.flag(
    flags.DEFINE_list, 'sweep', None,
    'Topologies whose images per second are predicted, such as v5e:4x4,8x8,16x16. The step is '
    'compiled for the first one, a single slice, with the batch of the config.')


def main(_) -> None:
    config = CONFIG.value
    if SWEEP.value and TOPOLOGY.value:
        raise UserError('--sweep names the topologies itself: leave out --topology.')
    names = scaling.expand(SWEEP.value or list(filter(None, [TOPOLOGY.value or config.topology])))
    if not names:
        raise UserError(cli.give('--topology=NAME', main.__module__))
    jax.config.update('jax_platforms', 'cpu')  # before JAX looks for accelerators to take
    jax.config.update('jax_enable_compilation_cache', False)  # to compile is the point
    if not JSON.value and (text := derived_table(config)):
        print(text, end='\n\n')
    print(f'compiling for {names[0]} …', file=sys.stderr, flush=True)
    if SWEEP.value:
        result = scaling.sweep(config, names)
        print(json.dumps(result) if JSON.value else scaling.table(result), flush=True)
        return
    result = compiled.report(config, topologies.create(names[0]))
    print(json.dumps(result) if JSON.value else compiled.table(result), flush=True)
    compiled.check_memory(result)


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
