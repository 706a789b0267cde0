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
import os
import re

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError
from resnet_jax.xla import hlo

CONFIG = cli.config_flag()
ROWS = flags.DEFINE_integer('rows', 12, 'Kinds of kernels in the table, by traffic.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

# NVIDIA H100 SXM, as its driver reports it.
TARGET = '''
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
'''
BANDWIDTH = 3352320000000


def compile_step(config):
    """The compiled step; JAX must not have been imported."""
    os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'  # would look for a GPU
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'
    import jax
    from jax.experimental import topologies

    from resnet_jax.distributed import sharding
    from resnet_jax.training.program import build

    jax.config.update('jax_enable_compilation_cache', False)
    try:
        devices = topologies.get_topology_desc(
            platform='cuda', target_config=TARGET, topology='1x1x1').devices
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f'XLA cannot compile for a GPU here ({" ".join(str(error).split())}): '
                        "pip install -e '.[cuda]'.") from error
    jax.config.update('jax_platforms', 'cpu')  # for all that is computed
    program = build(config, sharding.create_mesh(config, devices), blank=True)
    pipeline, steps = program.train_data, config.steps_per_call
    inputs = (pipeline.input_shapes,) * (1 if pipeline.shares_inputs else steps)
    return program.lower_train_steps(program.state, inputs, steps).compile()


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
