"""Memory, FLOPs, bytes and collectives of a compiled training step, as reported by XLA.

The compiled call runs `steps_per_call` steps, as in training; costs are per step.
"""

import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax import data, models
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import Program, build
from resnet_jax.xla import hlo
from resnet_jax.xla.topologies import Topology

# The forward pass, the gradient of the activations and that of the weights take a multiplication
# and an addition each.
FLOPS_A_MULTIPLY_ADD = 6
MESSAGE_LENGTH = 1000  # of the compiler's message that is shown


def report(config: ConfigDict, devices: Topology) -> dict[str, Any]:
    """Compiles the training step of a config, and reads what the compiler made of it.

    Args:
      config: see `resnet_jax.config`; its data need not be there.
      devices: see `topology.create`.

    Returns:
      'topology', 'device' and 'devices': its name, what a device is and how many there are.
      'parameters': their number. 'memory': bytes of one device: 'arguments', 'outputs' that do not
      take the place of arguments, 'temporaries', 'code', their sum 'total', and 'capacity'; None
      for what a step that does not fit left open. 'fits'. 'flops' and 'bytes': of a step, over all
      devices, as XLA counts them, loops included; the bytes are those that go in and out of every
      operation, also where they stay in a chip's fast memory. 'model_flops': 6 for each
      multiply-add of the images. 'collectives': by name, 'count' in a step and 'bytes' of their
      results on one device, rounded up where a call's are no multiple. 'compile_seconds'.
      'roofline_seconds': the longer of the times that FLOPs and bytes take at the published peaks.
      'mfu': the model's FLOPs over what the peak allows in that time. 'notes': sentences.

    Raises:
      UserError: a field of the config is wrong, or does not fit the devices.
    """
    program = build(config, sharding.create_mesh(config, devices.devices), data.blank_pipelines)
    count = program.mesh.size
    memory = dict.fromkeys(('arguments', 'outputs', 'temporaries', 'code', 'total'))
    result = {
        'topology': devices.name, 'device': devices.device, 'devices': count,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        'memory': memory | {'capacity': devices.memory}, 'fits': False, 'flops': None,
        'model_flops': FLOPS_A_MULTIPLY_ADD * config.batch_size * summarize(config)[
            'multiply_adds'],
        'bytes': None, 'collectives': None, 'compile_seconds': None, 'roofline_seconds': None,
        'mfu': None, 'notes': list(_batch_norm_notes(program, devices.device)),
    }
    steps, pipeline = config.steps_per_call, program.train_data
    inputs = (pipeline.input_shapes,) * (1 if pipeline.shares_inputs else steps)
    start = time.perf_counter()
    lowered = program.lower_train_steps(program.state, inputs, steps)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        result['memory'] |= _needed(str(error), program)
        return result
    result['compile_seconds'] = round(time.perf_counter() - start, 2)
    result['memory'] |= _memory(compiled)
    result['fits'] = result['memory']['total'] <= devices.memory
    module = hlo.parse(compiled.as_text())
    costs = compiled.cost_analysis()
    for name, key, factor in zip(('flops', 'bytes'), ('flops', 'bytes accessed'),
                                 hlo.loop_factors(module), strict=True):
        result[name] = round(costs[key] * factor / steps) * count
    result['collectives'] = {
        name: {key: -(-value // steps) for key, value in total.items()}
        for name, total in hlo.collectives(module).items()}
    if module.open_loops:
        result['notes'].append(f'loops that end on a condition, counted as one turn: '
                               f'{module.open_loops}.')
    return result | _roofline(result, devices)


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of one device; what is donated counts once."""
    stats = compiled.memory_analysis()
    memory = {
        'arguments': stats.argument_size_in_bytes,
        'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'code': stats.generated_code_size_in_bytes,
    }
    return memory | {'total': sum(memory.values())}


def _roofline(result: dict[str, Any], devices: Topology) -> dict[str, float]:
    """The time that the slower of arithmetic and memory takes, and the use it makes of the peak."""
    if devices.peak is None:
        return {}
    peak, bandwidth = (x * result['devices'] for x in (devices.peak, devices.bandwidth))
    seconds = max(result['flops'] / peak, result['bytes'] / bandwidth)
    return {'roofline_seconds': seconds, 'mfu': result['model_flops'] / (seconds * peak)}


def _needed(message: str, program: Program) -> dict[str, int]:
    """Bytes of one device that the compiler asked for in vain, as far as its message tells.

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


def _batch_norm_notes(program: Program, device: str) -> list[str]:
    """Whether batch statistics need communication, and what would spare it."""
    config, shards = program.config, program.mesh.shape['data']
    size = config.model.virtual_batch_size
    images = config.batch_size // config.optimizer.accumulation_steps // shards
    normalised = models.family_of(config.model).normalises(config.model)
    if shards == 1 or not normalised or config.init.freeze_bn or (size and images % size == 0):
        return []
    most = min(size or images, images)
    best = max(n for n in range(1, most + 1) if images % n == 0)
    parts = config.batch_size // config.optimizer.accumulation_steps
    named = 'the whole batch' if size is None or size >= parts else f'{size} images'
    return [f'batch normalisation takes its statistics over {named}, and a {device} has {images} '
            'at a time: every layer communicates. '
            f'--config.model.virtual_batch_size={best} would spare it.']
