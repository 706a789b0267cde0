"""Trains and evaluates the network of a config; resumes automatically from the latest checkpoint.

  python -m resnet_jax.main --config=configs/digits_r20.py

The workdir, runs/digits_r20 here, then holds config.json, metrics.jsonl, checkpoints/<step>/ and
TensorBoard files. On SIGTERM or Ctrl-C the run saves a checkpoint and exits with status 143 or 130.
Run the same command again to resume.
"""

import sys

from absl import flags

from resnet_jax import cli

CONFIG = cli.config_flag()
cli.flag(
    flags.DEFINE_string, 'workdir', None,
    'Folder of the run, or gs://BUCKET/FOLDER. If it contains checkpoints, the run resumes from '
    'the latest one. Default: runs/NAME, for a config file NAME.py.')
PROCESSES = cli.process_flags()


def main(_) -> int:
    # After the flags, so that a wrong flag is reported at once.
    from resnet_jax.distributed import processes
    from resnet_jax.output import say
    from resnet_jax.training import loop, start

    config, workdir, status = CONFIG.value, cli.workdir(), 0
    start.prepare(config)
    with processes.job(*(flag.value for flag in PROCESSES)):
        try:
            start.train(config, workdir)
        except loop.Stopped as stopped:  # within the job, whose processes stop together
            say(str(stopped), sys.stderr)
            status = 128 + stopped.signal
    return status


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
