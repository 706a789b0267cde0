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
PROCESSES = cli.process_flags()


def main(_) -> None:
    config, status = CONFIG.value, 0
    xla_flags.use(config.xla_preset)
    # After the flags, so that a wrong one is told at once.
    from resnet_jax import cpu, processes, train
    from resnet_jax.writers import say

    cpu.compute_in_main_thread()
    with processes.job(*(flag.value for flag in PROCESSES)):
        cpu.keep_memory()
        try:
            train.train(config, pathlib.Path(WORKDIR.value))
        except train.Stopped as stopped:
            say(str(stopped), sys.stderr)
            status = 128 + stopped.signal
    sys.exit(status)


if __name__ == '__main__':
    cli.run(main)
