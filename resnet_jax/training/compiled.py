"""Memory, FLOPs, bytes and collectives of a compiled training step, as reported by XLA.

The compiled call runs `steps_per_call` steps, as in training; costs are per step.
"""

import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import accumulation
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import Program, build
from resnet_jax.xla import hlo, networks
from resnet_jax.xla.topologies import Topology

GIB, MIB = 2**30, 2**20
MESSAGE_LENGTH = 1000  # of the compiler's message that is shown


def report(config: ConfigDict, devices: Topology) -> dict[str, Any]:
    """Compiles the training step of a config, and reads its costs from the compiled program.

    Args:
      config: see `resnet_jax.config`; its data need not exist.
      devices: see `topologies.create`.

    Returns:
      'topology', 'device' and 'devices': its name, what a device is and how many there are.
      'parameters': their number. 'memory': bytes per device: 'arguments', 'outputs' that do not
      reuse the memory of arguments, 'temporaries', 'code', their sum 'total', and 'capacity'; None
      where unknown because the step does not fit. 'fits'. 'flops' and 'bytes': per step, over all
      devices, as counted by XLA, including loops; bytes are those read and written by every
      operation, even if they stay in a chip's fast memory. 'model_flops': per step, see
      'train_flops' of `costs.summarize`.
      'collectives': by name, 'count' per step and 'bytes' of their results per device, rounded up
      if those of a call are not a multiple. 'compile_seconds'. 'roofline_seconds': the longer of
      the times that FLOPs and bytes take at the published peaks. 'mfu': the model's FLOPs divided
      by what the peak allows in that time. 'communication_seconds': of the collectives, see
      `networks.seconds`. 'images_per_second': if nothing overlaps the collectives, as a step then
      takes the sum of both times. 'notes': sentences.

    Raises:
      UserError: a field of the config is wrong, or does not fit the devices.
    """
    program = build(config, sharding.create_mesh(config, list(devices.devices)), blank=True)
    count = program.mesh.size
    memory = dict.fromkeys(('arguments', 'outputs', 'temporaries', 'code', 'total'))
    result = {
        'topology': devices.name, 'device': devices.device, 'devices': count,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        'memory': memory | {'capacity': devices.memory}, 'fits': False, 'flops': None,
        'model_flops': config.batch_size * summarize(config)['train_flops'],
        'bytes': None, 'collectives': None, 'compile_seconds': None, 'roofline_seconds': None,
        'mfu': None, 'communication_seconds': None, 'images_per_second': None, 'notes': [],
    }
    if spanning := accumulation.spanning(config, program.mesh.shape['data'], devices.device):
        result['notes'].append(spanning)
    steps, pipeline = config.steps_per_call, program.train_data
    inputs = (pipeline.input_shapes,) * (1 if pipeline.shares_inputs else steps)
    start = time.perf_counter()
    lowered = program.lower_train_steps(program.state, inputs, steps)
    try:
        compiled: Any = lowered.compile(compiler_options=devices.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        result['memory'] |= _needed(str(error), program)
        return result
    result['compile_seconds'] = round(time.perf_counter() - start, 2)
    result['memory'] |= _memory(compiled)
    result['fits'] = result['memory']['total'] <= devices.memory
    module = hlo.parse(compiled.as_text())
    if costs := compiled.cost_analysis():
        for name, key, factor in zip(('flops', 'bytes'), ('flops', 'bytes accessed'),
                                     hlo.loop_factors(module), strict=True):
            result[name] = round(costs[key] * factor / steps) * count
    else:
        result['flops'] = result['model_flops']
        result['bytes'] = count * round(
            sum(moved * times for _, moved, times in hlo.kernels(module)) / steps)
        result['notes'].append("XLA counts nothing for these devices: the FLOPs are the model's, "
                               'the bytes are what goes in and out of every kernel.')
    result['collectives'] = {
        name: {key: -(-value // steps) for key, value in total.items()}
        for name, total in hlo.collectives(module).items()}
    if module.open_loops:
        result['notes'].append(f'loops that end on a condition, counted as one iteration: '
                               f'{module.open_loops}.')
    return result | _roofline(result, devices, config.batch_size)


def table(result: dict[str, Any]) -> str:
    """Formats a `report` as text."""
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
        lines += [f'  {name}{total["count"]:>{32 - len(name)},} {total["bytes"]:>26,}'
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
        if result['communication_seconds'] is not None:
            lines += [f'  communication     {1000 * result["communication_seconds"]:.2f} ms',
                      f'  images per second {result["images_per_second"]:,.0f}, if communication '
                      'overlaps with nothing']
    return '\n'.join([*lines, '', *(f'note: {note}' for note in result['notes'])]).rstrip()


def check_memory(result: dict[str, Any]) -> None:
    """Raises UserError if the step of a `report` does not fit in memory."""
    memory = result['memory']
    if not result['fits']:
        raise UserError(
            f'the training step needs {memory["total"] / GIB:.2f} GiB per {result["device"]}, but '
            f'{result["topology"]} has {memory["capacity"] / GIB:.2f} GiB: use a smaller '
            'batch_size, a larger slice, model.dtype=bfloat16 or a larger '
            'optimizer.accumulation_steps.')


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes per device; donated arrays count once."""
    stats: Any = compiled.memory_analysis()
    memory = {
        'arguments': stats.argument_size_in_bytes,
        'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'code': stats.generated_code_size_in_bytes,
    }
    return memory | {'total': sum(memory.values())}


def _roofline(result: dict[str, Any], devices: Topology, batch_size: int) -> dict[str, float]:
    """The time that arithmetic or memory takes, whichever is longer, and that of the collectives.
    """
    if devices.peak is None:
        return {}
    peak, bandwidth = (x * result['devices'] for x in (devices.peak, devices.bandwidth))
    seconds = max(result['flops'] / peak, result['bytes'] / bandwidth)
    communication = networks.total_seconds(result['collectives'], devices.network)
    return {'roofline_seconds': seconds, 'mfu': result['model_flops'] / (seconds * peak),
            'communication_seconds': communication,
            'images_per_second': batch_size / (seconds + communication)}


def _needed(message: str, program: Program) -> dict[str, int]:
    """Bytes per device that the compiler failed to get, as far as its message says.

    Raises:
      UserError: it failed for another reason.
    """
    arguments = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((program.state, program.train_data.input_shapes)))
    if found := re.search(r'temporaries \(([\d.]+)([KMGT]?)\) exceeds', message):
        temporaries = _bytes(*found.groups())
        return {'arguments': arguments, 'temporaries': temporaries,
                'total': arguments + temporaries}
    if found := re.search(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', message):
        return {'arguments': arguments, 'total': _bytes(*found.groups())}
    raise UserError('XLA cannot compile the training step for these devices: '
                    + ' '.join(message.split())[:MESSAGE_LENGTH])


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024**' KMGT'.index(unit or ' '))
