"""Times the way from the shell to the first step, with an empty and a full compilation cache.

    python experiments/benchmarks/startup.py --config=configs/digits_r20.py --json=result.json

Starts `python -m resnet_jax.main` as a user would, records when each line of output arrives, and
ends it after the first step. Cold: the folder of compiled programs is empty; warm: the next process
with the same folder. Cold and warm starts alternate. Prepared data (`data.cache`) is present in
both, thanks to an initial start that is not counted. Processor time is that of the whole process.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
REPEATS = flags.DEFINE_integer('repeats', 5, 'Pairs of a cold and a warm start.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

# What begins a line of the output: what is done by then.
MARKS = {'announced': ' parameters; ', 'compiled': 'compiled the training step',
         'first_step': 'step       1/'}


def start(arguments: list[str], **environment: str) -> dict[str, float]:
    """One start up to the first step: seconds to each mark, and of processor time.

    Args:
      arguments: of the command line.
      environment: variables that are changed.

    Raises:
      UserError: the program ended before; its own message is on stderr.
    """
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **environment}
    with tempfile.TemporaryDirectory() as workdir:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, '-m', 'resnet_jax.main', f'--workdir={workdir}/run', *arguments,
             '--config.log.every_steps=1'],
            stdout=subprocess.PIPE, text=True, env=environment)
        times = {}
        for line in process.stdout:
            for mark, text in MARKS.items():
                if text in line:
                    times.setdefault(mark, time.perf_counter() - begin)
            if 'first_step' in times:
                break
        process.kill()
        process.stdout.close()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # it has been waited for
    if 'first_step' not in times:
        raise UserError('the program ended before its first step; see its message above.')
    return times | {'processor': usage.ru_utime + usage.ru_stime}


def measure(arguments: list[str], repeats: int) -> dict[str, turns.Outcome]:
    """'cold' and 'warm', taking turns."""
    outcomes = {'cold': turns.Outcome(), 'warm': turns.Outcome()}
    start(arguments)
    for i in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, outcome in outcomes.items():
                outcome.passes.append(start(arguments, JAX_COMPILATION_CACHE_DIR=cache))
                turns.progress(f'{name} start {i + 1} of {repeats}: '
                               f'{outcome.passes[-1]["first_step"]:.1f} s to the first step')
    return outcomes


def main(argv) -> None:
    del argv
    arguments = [argument for argument in sys.argv[1:] if argument.startswith('--config')]
    config_file = pathlib.Path(flags.FLAGS['config'].config_filename)
    arguments = [f'--config={config_file}', *(x for x in arguments if x.startswith('--config.'))]
    outcomes = measure(arguments, REPEATS.value)
    made = {name: {part: outcome.median(part) for part in (*MARKS, 'processor')}
            | {'passes': outcome.passes} for name, outcome in outcomes.items()}
    made['warm over cold'] = {part: turns.ratio(outcomes['warm'], outcomes['cold'], part)
                              for part in (*MARKS, 'processor')}
    print(turns.table(
        ['seconds from the shell', 'network announced', 'step compiled', 'first step done',
         'processor time'],
        [[name, *(f'{row[part]:.2f}' for part in (*MARKS, 'processor'))]
         for name, row in made.items()]))
    turns.write_json(JSON.value, {'repeats': REPEATS.value, 'unit': 'seconds', 'rows': made})


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
