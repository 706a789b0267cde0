"""Times the paper's CIFAR recipe from start to end, and two PyTorch programs of the same recipe.

    python experiments/benchmarks/cifar.py --config=configs/cifar10_r20.py \
        --config.data.source=folder --config.data.path=DIR

The whole process is timed: imports, compilation, all steps and all evaluations. This program is
`python -m resnet_jax.main` with the given config and an empty compilation cache. PyTorch is
`torch_cifar.py`: 'plain' with a DataLoader, and 'fair' with data on the device, bfloat16 and CUDA
graphs. For all three, the images are decoded beforehand.

If you have a machine only for a short time, --limit stops a program after that many seconds; run
the command again to resume, and the times of the pieces are added. --programs selects among the
three. On a CPU, --config.num_steps=20 checks quickly that everything works.
"""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.config import leaves
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string(
    'workdir', None,
    'Folder of the runs, which are resumed. Default: runs/NAME_benchmark, after the config file '
    'NAME.py.')
PROGRAMS = flags.DEFINE_list('programs', ['ours', 'plain', 'fair'], 'Out of ours, plain and fair.')
LIMIT = flags.DEFINE_float('limit', 0.0, 'Seconds after which a program is stopped; 0: never.', 0)
WORKERS = flags.DEFINE_integer('workers', 4, "Processes of the plain program's DataLoader.", 0)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

NAMES = {'ours': 'this program', 'plain': 'PyTorch, plain', 'fair': 'PyTorch, fair'}
STOPPED = 128 + signal.SIGTERM
HERE = pathlib.Path(__file__).parent


def recipe(config) -> dict:
    """What the PyTorch programs need to know of the config.

    Raises:
      UserError: it asks for what they do not have.
    """
    model, data, schedule, optimizer = config.model, config.data, config.schedule, config.optimizer
    fixed = {
        'model.family': 'cifar', 'model.batch_norm': True, 'model.zero_init_last_gamma': False,
        'model.bottleneck': False,
        'data.train_crop': 'pad', 'data.eval_split': 'test', 'data.holdout': 0,
        'data.color_noise': 0.0, 'data.randaugment_layers': 0, 'data.mixup_alpha': 0.0,
        'data.cutmix_alpha': 0.0, 'schedule.name': 'steps', 'optimizer.name': 'sgd',
        'optimizer.momentum_form': 'paper', 'optimizer.nesterov': False,
        'optimizer.decay_bn_and_bias': True, 'optimizer.accumulation_steps': 1,
        'optimizer.clip_norm': None, 'optimizer.ema_decay': None, 'loss.label_smoothing': 0.0,
        'eval.recalibrate_batches': 0, 'init.checkpoint': ''}
    given = leaves(config)
    for field, value in fixed.items():
        if given[field] != value:
            raise UserError(f'the PyTorch programs support only {field}={value!r}, got '
                            f'{given[field]!r}; --programs=ours leaves them out.')
    if schedule.warmup == 'linear':
        raise UserError("the PyTorch programs have schedule.warmup 'none' and 'error' only, got "
                        "'linear'; --programs=ours leaves them out.")
    names = ('family', 'depth', 'width', 'stem_width', 'plain', 'shortcut', 'stride_in',
             'num_classes')
    return {name: model[name] for name in names} | {
        'seed': config.seed, 'num_steps': config.num_steps, 'batch_size': config.batch_size,
        'crop_padding': data.crop_padding, 'flip': data.flip,
        'learning_rate': schedule.learning_rate, 'boundaries': list(schedule.boundaries),
        'factor': schedule.factor, 'warmup': schedule.warmup,
        'warmup_learning_rate': schedule.warmup_learning_rate,
        'warmup_error': schedule.warmup_error, 'warmup_window': schedule.warmup_window,
        'momentum': optimizer.momentum, 'weight_decay': optimizer.weight_decay,
        'eval_every_steps': config.eval.every_steps or config.num_steps,
        'eval_batch_size': config.eval.batch_size}


def write_images(config, path: pathlib.Path) -> None:
    """The images and their means for the PyTorch programs, as this program decodes them."""
    import jax
    import numpy as np

    from resnet_jax import data
    from resnet_jax.data.sources import ArraySource
    from resnet_jax.distributed import sharding

    jax.config.update('jax_platforms', 'cpu')  # the accelerator is for the programs
    train, test, normalization = data.create_pipelines(config, sharding.create_mesh(config))
    if not isinstance(train.source, ArraySource):
        raise UserError('the PyTorch programs need a small dataset of images of one size; '
                        '--programs=ours leaves them out.')
    part = path.with_name('part.npz')
    np.savez(part, train_images=train.source.images, train_labels=train.source.labels,
             test_images=test.source.images, test_labels=test.source.labels, **normalization)
    part.replace(path)


def command(program: str, folder: pathlib.Path) -> list[str]:
    """The command line of a program whose run lies in a folder."""
    if program == 'ours':
        config = [f'--config={flags.FLAGS["config"].config_filename}',
                  *(x for x in sys.argv[1:] if x.startswith('--config.'))]
        return [sys.executable, '-m', 'resnet_jax.main', f'--workdir={folder / "run"}', *config]
    return [sys.executable, str(HERE / 'torch_cifar.py'), f'--workdir={folder / "run"}',
            f'--recipe={folder.parent / "recipe.json"}', f'--data={folder.parent / "data.npz"}',
            f'--workers={WORKERS.value}', *['--fair'] * (program == 'fair')]


def run(program: str, folder: pathlib.Path, num_steps: int) -> dict:
    """Goes on with a program until its end or the limit; its row of the table.

    Raises:
      UserError: the program failed; its own message is on stderr.
    """
    from resnet_jax.output import write_whole
    from resnet_jax.training.writers import read_rows

    folder.mkdir(parents=True, exist_ok=True)
    pieces_path = folder / 'pieces.json'
    pieces = json.loads(pieces_path.read_text()) if pieces_path.exists() else []
    if not pieces or pieces[-1]['num_steps'] < num_steps or not pieces[-1]['finished']:
        environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled'))
        begin = time.perf_counter()
        process = subprocess.Popen(command(program, folder), env=environment, stdout=sys.stderr)
        try:
            process.wait(LIMIT.value or None)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        if process.returncode not in (0, STOPPED):
            raise UserError(f'{NAMES[program]} failed; see its message above.')
        pieces.append({'seconds': time.perf_counter() - begin, 'num_steps': num_steps,
                       'finished': process.returncode == 0})
        write_whole(pieces_path, json.dumps(pieces, indent=1) + '\n')
    rows = [row for row in read_rows(folder / 'run' / 'metrics.jsonl') if 'eval/top1_error' in row]
    return {'seconds': sum(piece['seconds'] for piece in pieces), 'pieces': pieces,
            'finished': pieces[-1]['finished'], 'evaluated': rows[-1] if rows else None}


def why_not(program: str) -> str | None:
    """Why a program is not run."""
    if program not in PROGRAMS.value:
        return 'not chosen'
    if program == 'ours':
        return None
    if not importlib.util.find_spec('torch'):
        return turns.NO_PYTORCH
    import torch

    if program == 'fair' and not torch.cuda.is_available():
        return 'CUDA graphs need an NVIDIA GPU'
    return None


def table(made: dict[str, dict]) -> str:
    def cells(row: dict) -> list[str]:
        if 'not_run' in row:
            return [f'not run ({row["not_run"]})', '', '', '']
        evaluated, ours = row['evaluated'], made['ours']
        comparable = row['finished'] and ours.get('finished')
        return [f'{row["seconds"]:.1f}' + ('' if row['finished'] else ', unfinished'),
                f'{row["seconds"] / ours["seconds"]:.2f}' if comparable else 'not run',
                str(evaluated['step']) if evaluated else 'none',
                f'{evaluated["eval/top1_error"]:.2f}' if evaluated else 'none']

    return turns.table(
        ['', 'seconds, start to end', 'over this program', 'last evaluation at step',
         'test error %'], [[NAMES[program], *cells(row)] for program, row in made.items()])


def main(_) -> None:
    from resnet_jax.output import write_whole

    unknown = set(PROGRAMS.value) - set(NAMES)
    if unknown:
        raise UserError(f'--programs takes {", ".join(NAMES)}; got {", ".join(sorted(unknown))}.')
    workdir = cli.workdir(f'runs/{cli.config_name()}_benchmark')
    config = CONFIG.value
    workdir.mkdir(parents=True, exist_ok=True)
    made = {program: {'not_run': why_not(program)} for program in NAMES}
    chosen = [program for program, row in made.items() if row['not_run'] is None]
    if set(chosen) - {'ours'}:
        write_whole(workdir / 'recipe.json', json.dumps(recipe(config), indent=1) + '\n')
        if not (workdir / 'data.npz').exists():
            write_images(config, workdir / 'data.npz')
    for program in chosen:
        made[program] = run(program, workdir / program, config.num_steps)
    print(table(made))
    turns.write_json(JSON.value, {'num_steps': config.num_steps, 'unit': 'seconds', 'rows': made})


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
