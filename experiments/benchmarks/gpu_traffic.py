"""Counts kernels and memory traffic of a training step compiled for a GPU, without having one.

    python experiments/benchmarks/gpu_traffic.py --config=configs/imagenet_r50.py \
        --config.batch_size=256 --config.model.stride_in=v1.5 --config.model.dtype=bfloat16

Traffic is the size of all inputs and outputs of every kernel, assuming no cache hits; a kernel that
reads a few rows of an array counts the whole array. Divided by the memory bandwidth, it is a lower
bound on the time of a memory-bound step. Kernels are grouped by the kind of XLA fusion or the
library function. Needs `pip install -e '.[cuda]'`, but no GPU. Convolutions are compiled without
autotuning, which needs a GPU, so the memory of their workspaces is not included.
"""

import collections
import json
import re

import jax
import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.distributed import sharding
from resnet_jax.training.program import build
from resnet_jax.xla import hlo, topologies

BANDWIDTH = topologies.GPUS['h100'].bandwidth
CONFIG = cli.config_flag()
ROWS = flags.DEFINE_integer('rows', 12, 'Kinds of kernels in the table, by traffic.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')


def compile_step(config):
    """The compiled step."""
    jax.config.update('jax_platforms', 'cpu')  # for all that is computed
    jax.config.update('jax_enable_compilation_cache', False)
    gpu = topologies.create('h100:1')
    program = build(config, sharding.create_mesh(config, list(gpu.devices)), blank=True)
    pipeline, steps = program.train_data, config.steps_per_call
    inputs = (pipeline.input_shapes,) * (1 if pipeline.shares_inputs else steps)
    return program.lower_train_steps(program.state, inputs, steps).compile(
        compiler_options=gpu.compiler_options)


def _kind(instruction) -> str:
    if target := re.search(r'custom_call_target="([^"]*)"', instruction.attributes):
        return target[1]
    return re.sub(r'[.\d]+$', '', instruction.name).replace('_', ' ')


def main(_) -> None:
    config = CONFIG.value
    compiled = compile_step(config)
    steps = config.steps_per_call
    kinds = collections.defaultdict(lambda: {'kernels': 0, 'bytes': 0})
    for instruction, moved, times in hlo.kernels(hlo.parse(compiled.as_text())):
        row = kinds[_kind(instruction)]
        row['kernels'] += times / steps
        row['bytes'] += moved * times / steps
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]['bytes']))
    total = {key: sum(row[key] for row in kinds.values()) for key in ('kernels', 'bytes')}
    rows = [*list(ordered.items())[:ROWS.value], ('all', total)]
    print(turns.table(['kind', 'kernels', 'GB', '%'], [
        [name, f'{row["kernels"]:,.0f}', f'{row["bytes"] / 1e9:.2f}',
         f'{row["bytes"] / total["bytes"]:.1%}'] for name, row in rows]))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(f'{total["bytes"] / config.batch_size / 1e6:.1f} MB per image; at least '
          f'{1e3 * total["bytes"] / BANDWIDTH:.2f} ms per step on an H100 SXM; '
          f'temporaries {temporaries / 1e9:.2f} GB')
    turns.write_json(JSON.value, {
        'config': json.loads(config.to_json()), 'kinds': ordered, **total,
        'temporaries': temporaries})


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
