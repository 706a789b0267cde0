"""Prints the checksum of every gathered batch; run as a program by test_repeatable."""

import json
import sys
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import create_pipelines


def checksums(config: ConfigDict, devices, start: int, stop: int) -> Iterator[str]:
    """A line for each step in [start, stop), of the batch over these devices."""
    train, _, normalization = create_pipelines(config, Mesh(devices, 'data'))
    batch = jax.jit(train.batch)
    inputs = train.inputs(start)
    for step in range(start, stop):
        gathered = multihost_utils.process_allgather(
            batch(next(inputs), np.int32(step), normalization), tiled=True)
        crc = zlib.crc32(b''.join(np.ascontiguousarray(gathered[name]).tobytes()
                                  for name in sorted(gathered)))
        yield f'batch {step} {crc}'
    inputs.close()


def main(process: int, num_processes: int, port: int, start: int, stop: int, file: str) -> None:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'localhost:{port}', num_processes, process)
    with open(file, encoding='utf-8') as f:
        config = ConfigDict(json.load(f))
    for line in checksums(config, jax.devices(), start, stop):
        print(line, flush=True)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:6]), sys.argv[6])
