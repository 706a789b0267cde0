"""Prints the checksum of every gathered batch; run as a program by test_repeatable."""

import json
import sys
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import create_pipelines


def main(process: int, num_processes: int, port: int, start: int, stop: int, file: str) -> None:
    if num_processes > 1:
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(f'localhost:{port}', num_processes, process)
    with open(file, encoding='utf-8') as f:
        config = ConfigDict(json.load(f))
    train, _, normalization = create_pipelines(config, Mesh(jax.devices(), 'data'))
    batch = jax.jit(train.batch)
    inputs = train.inputs(start)
    for step in range(start, stop):
        gathered = multihost_utils.process_allgather(
            batch(next(inputs), np.int32(step), normalization), tiled=True)
        print('batch', step, zlib.crc32(b''.join(np.ascontiguousarray(gathered[name]).tobytes()
                                                 for name in sorted(gathered))), flush=True)
    inputs.close()


if __name__ == '__main__':
    main(*map(int, sys.argv[1:6]), sys.argv[6])
