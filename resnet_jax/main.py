"""Trains and evaluates the network of a config; goes on from a checkpoint by itself.

  python -m resnet_jax.main --config=configs/digits_r20.py --workdir=runs/digits

The workdir then holds config.json, metrics.jsonl, checkpoints/<step>/ and TensorBoard files. When
SIGTERM or Ctrl-C stops the run, its state is saved, the exit status is 143 or 130, and the same
command goes on from there.
"""

import pathlib
import sys

from absl import flags

from resnet_jax import cli, xla_flags

CONFIG = cli.config_flag()
WORKDIR = cli.flag(
    flags.DEFINE_string, 'workdir', None,
    'Folder of the run; a run whose checkpoints it holds is continued.')
flags.adopt_module_key_flags(cli)
flags.mark_flag_as_required('workdir')
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'Address and port of process 0, of a job of several processes that '
    'neither Cloud TPU nor SLURM nor Open MPI started.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of such a job.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')


def main(_) -> None:
    config = CONFIG.value
    xla_flags.use(config.xla_preset)
    # After the flags, so that a wrong one is told at once.
    from resnet_jax import sharding, train

    sharding.start_distributed(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    try:
        train.train(config, pathlib.Path(WORKDIR.value))
    except train.Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(128 + stopped.signal)


if __name__ == '__main__':
    cli.run(main)
