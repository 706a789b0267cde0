"""Trains and evaluates the network of a config; resumes automatically from the latest checkpoint.

  python -m resnet_jax.main --config=configs/digits_r20.py

The workdir, runs/digits_r20 here, then holds config.json, metrics.jsonl, checkpoints/<step>/ and
TensorBoard files. On SIGTERM or Ctrl-C the run saves a checkpoint and exits with status 143 or 130.
Run the same command again to resume.
"""

import sys

from absl import flags

from resnet_jax import cli
from resnet_jax.config import derived_table
from resnet_jax.errors import UserError
from resnet_jax.xla import flags as xla_flags

CONFIG = cli.config_flag()
cli.flag(
    flags.DEFINE_string, 'workdir', None,
    'Folder of the run. If it contains checkpoints, the run resumes from the latest one. Default: '
    'runs/NAME, for a config file NAME.py.')
PROCESSES = cli.process_flags()


def main(_) -> None:
    config, workdir, status = CONFIG.value, cli.workdir(), 0
    xla_flags.use(config.xla_preset)
    # After the flags, so that a wrong flag is reported at once.
    from resnet_jax.data.decode import UnreadableImageError
    from resnet_jax.distributed import processes
    from resnet_jax.output import say
    from resnet_jax.training import loop
    from resnet_jax.xla import cpu

    cpu.compute_in_main_thread()
    with processes.job(*(flag.value for flag in PROCESSES)):
        cpu.keep_memory()
        say('\n'.join(filter(None, (derived_table(config), f'workdir: {workdir}'))))
        try:
            loop.train(config, workdir)
        except UnreadableImageError as error:
            raise UserError(f'{error} To leave out images that cannot be read, pass '
                            '--config.data.on_unreadable=skip.') from error
        except loop.Stopped as stopped:
            say(str(stopped), sys.stderr)
            status = 128 + stopped.signal
    sys.exit(status)


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
