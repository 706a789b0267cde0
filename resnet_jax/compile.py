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
from typing import Any

import jax
from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError
from resnet_jax.training import compiled
from resnet_jax.xla import topologies

GIB, MIB = 2**30, 2**20

CONFIG = cli.config_flag()
JSON = cli.json_flag()
TOPOLOGY = cli.flag(
    flags.DEFINE_string, 'topology', None,
    'Devices to compile for: a TPU slice such as v5e:4x4 or v5p:4x4x4, or simulated ones such as '
    'cpu:8.')


def table(result: dict[str, Any]) -> str:
    """The report for a person to read."""
    memory, capacity = result['memory'], result['memory']['capacity']
    device, count = result['device'], result['devices']
    lines = [f'training step on {result["topology"]}',
             f'devices             {count} {device}{"" if count == 1 else "s"}',
             f'parameters          {result["parameters"]:,}']
    if result['compile_seconds'] is not None:
        lines.append(f'compiled in         {result["compile_seconds"]:,.1f} s')
    lines += ['', f'memory per {device}']
    for name in ('arguments', 'outputs', 'temporaries', 'code', 'total', 'capacity'):
        value = 'unknown' if memory[name] is None else (
            f'{memory[name] / MIB:10,.1f} MiB  {memory[name] / capacity:7.1%}')
        lines.append(f'  {name:<17} {value}')
    lines.append(f'  {"fits":<17} {"yes" if result["fits"] else "no"}')
    if result['collectives'] is not None:
        lines += ['', f'{"collectives":<19} {"count per step":>14} {"bytes per " + device:>26}']
        lines += [f'  {name:<17} {total["count"]:>14,} {total["bytes"]:>26,}'
                  for name, total in sorted(result['collectives'].items())] or ['  none']
        lines += ['', f'one step, over all {count} devices',
                  f'  FLOPs             {result["flops"]:.4g}, the model\'s '
                  f'{result["model_flops"]:.4g}',
                  f'  bytes             {result["bytes"]:.4g}']
        if result['mfu'] is None:
            lines.append('  roofline          none: the peak of these devices is unknown')
        else:
            lines.append(f'  roofline          {1000 * result["roofline_seconds"]:.2f} ms, '
                         f'{result["mfu"]:.1%} of the peak FLOPs (MFU)')
    return '\n'.join([*lines, '', *(f'note: {note}' for note in result['notes'])]).rstrip()


def check_memory(result: dict[str, Any]) -> None:
    """Raises UserError where the step of a `compiled.report` does not fit."""
    memory = result['memory']
    if not result['fits']:
        raise UserError(
            f'the training step needs {memory["total"] / GIB:.2f} GiB per {result["device"]}, but '
            f'{result["topology"]} has {memory["capacity"] / GIB:.2f} GiB: use a smaller '
            'batch_size, a larger slice, model.dtype=bfloat16 or a larger '
            'optimizer.accumulation_steps.')


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')  # before JAX looks for accelerators to take
    jax.config.update('jax_enable_compilation_cache', False)  # to compile is the point
    devices = topologies.create(TOPOLOGY.value)
    print(f'compiling for {len(devices.devices)} x {devices.devices[0].device_kind} …',
          file=sys.stderr, flush=True)
    result = compiled.report(CONFIG.value, devices)
    print(json.dumps(result) if JSON.value else table(result), flush=True)
    check_memory(result)


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE', '--topology=NAME'])
