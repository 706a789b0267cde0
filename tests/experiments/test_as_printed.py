"""The commands that the documents print for figures and reports, on networks of random weights.

Each is run as printed, followed by flags that name smaller runs or make less of them.
"""

import json

import PIL.Image
import pytest

from configs import digits
from resnet_jax.config import leaves
from tests import xla_options
from tests.experiments.test_scaling import POINTS
from tests.printed import ROOT, as_printed
from tests.weights.networks import store

LEDGER = ' --ledger=runs/digits_sweep --workdir=drawn'
FEW = (' --config=configs/digits_r20.py --config.compilation_cache= --images=20 '
       '--train_images=20')


@pytest.fixture(scope='module')
def run(commands, tmp_path_factory):
    """Runs a command in a folder that has what the documents speak of."""
    folder = tmp_path_factory.mktemp('printed')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    for name, plain in (('digits', False), ('digits_r20', False), ('digits_plain', True),
                        ('imagenette_finetune', False)):
        store(folder / 'runs' / name, channels=1, size=8, plain=plain, unroll=False)
    (folder / 'WORKDIR').symlink_to('runs/digits')
    kinds = {'plain': ('A', True), 'A': ('A', False), 'B': ('B', False), 'C': ('C', False)}
    write_ledger(folder / 'runs' / 'digits_sweep', {kind: kinds[kind] for kind in ('plain', 'A')})
    write_ledger(folder / 'runs' / 'shortcuts', kinds)
    (folder / 'FILE.json').write_text(json.dumps({'base': {}, 'points': POINTS}))

    def run(words: list[str]) -> str:
        done = commands.run(*words, cwd=folder, env={'XLA_FLAGS': xla_options.quick(devices=1)})
        assert done.status == 0, f'{" ".join(words)}\n{done.output}\n{done.errors}'
        return done.output

    run.folder = folder
    return run


def write_ledger(folder, kinds):
    """A ledger of ResNet-8 with these shortcuts, two seeds each, and their stored networks."""
    rows = []
    for number, (kind, (shortcut, plain)) in enumerate(kinds.items()):
        for seed in range(2):
            config = digits.get_config()
            store(folder / f'{kind}{seed}', channels=1, size=8, plain=plain, shortcut=shortcut,
                  unroll=False)
            config.model.update(depth=8, width=8, plain=plain, shortcut=shortcut, unroll=False)
            config.seed = seed
            (folder / f'{kind}{seed}' / 'config.json').write_text(config.to_json(indent=2))
            error = number + seed / 10
            rows.append({'run': f'{kind}{seed}', 'overrides': {}, 'status': 'finished',
                         'error': None, 'final_error': error, 'best_error': error,
                         'final_train_error': error, 'final_train_loss': error / 100,
                         'config': leaves(config)})
            (folder / f'{kind}{seed}' / 'metrics.jsonl').write_text(
                '{"step": 50, "train/top1_error": 30.0, "eval/top1_error": 40.0}\n')
    (folder / 'ledger.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.mark.slow
@pytest.mark.parametrize(('words', 'file', 'says'), [
    (as_printed('python -m experiments.degradation', LEDGER),
     'drawn/degradation.png', 'plain-8 '),
    (as_printed('python -m experiments.degradation --ledger=runs/digits_sweep '
                '--workdir=docs/results'), 'docs/results/degradation.svg', 'ResNet-8 '),
    (as_printed('python -m experiments.depth', LEDGER + ' --depths=8'),
     'drawn/depth.png', 'ResNet-8 '),
    (as_printed('python -m experiments.depth --ledger=runs/digits_sweep --workdir=docs/results'),
     'docs/results/depth.svg', 'ResNet-8 '),
    (as_printed('python -m experiments.responses', LEDGER + ' --depths=8'),
     'drawn/responses.png', 'plain-8 '),
    (as_printed('python -m experiments.responses --ledger=runs/digits_sweep '
                '--workdir=docs/results', '--depths=8 --batches=1'),
     'docs/results/responses.svg', 'ResNet-8 '),
    (as_printed('python -m experiments.first_step', '--depths=8 --seeds=0 --workdir=drawn'),
     'drawn/first_step.png', 'plain-8 '),
    (as_printed('python -m experiments.shortcuts', '--ledger=runs/shortcuts --depth=8'),
     'runs/shortcuts/shortcuts.png', 'ResNet-8 C '),
    (as_printed('python -m experiments.scaling --output=scaling.svg FILE.json'),
     'scaling.svg', ''),
    (as_printed('python -m experiments.look runs/digits', FEW + ' --only=filters'),
     'runs/digits/look/report.html', ''),
    (as_printed('python -m experiments.look runs/digits_r20', FEW + ' --only=filters'),
     'runs/digits_r20/look/report.html', ''),
    (as_printed('python -m experiments.look WORKDIR', FEW + ' --only=filters --output=page'),
     'page/report.html', ''),
    (as_printed('python -m experiments.look runs/imagenette_finetune --output=runs/seen/filters '
                '--only=filters,gradcam --images=100', FEW), 'runs/seen/filters/report.html', ''),
    (as_printed('python -m experiments.look runs/imagenette_finetune --output=runs/seen/blocks '
                '--only=blocks --images=200 --train_images=400', FEW + ' --only=filters'),
     'runs/seen/blocks/report.html', ''),
    (as_printed('python -m experiments.look runs/imagenette_finetune --output=runs/seen/maximised '
                '--only=maximisation --images=100 --side=112 --ascent_steps=64 --starts=1 '
                '--channels=6', FEW + ' --side=8 --ascent_steps=2 --channels=2'),
     'runs/seen/maximised/report.html', ''),
    (as_printed('python -m experiments.look runs/imagenette_finetune '
                '--output=runs/seen/attributions --only=attributions --images=24 --gradients=64',
                FEW), 'runs/seen/attributions/report.html', ''),
], ids=lambda value: ' '.join(value[:2]) if isinstance(value, list) else '')
def test_a_command_writes_what_it_is_for(run, words, file, says):
    assert says in run(words)
    assert (run.folder / file).stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize('words', [
    as_printed('python -m experiments.gallery --output=docs/seeing/photos_gradcam.jpg --columns=1 '
               '--width=1100 runs/seen/filters/figures/gradcam_maps.png'),
    as_printed('python -m experiments.gallery --output=docs/seeing/photos_attributions.jpg '
               '--columns=1 --width=1100 runs/seen/attributions/figures/attributions.png'),
    as_printed('python -m experiments.gallery --output=docs/seeing/photos_maximised_classes.jpg '
               '--columns=1 --width=1100 runs/seen/maximised/figures/maximised_classes.png'),
    as_printed('python -m experiments.gallery --output=docs/seeing/photos_maximised_channels.jpg '
               '--columns=1 --width=600 runs/seen/maximised/figures/maximised_channels.png'),
], ids=lambda words: words[-1].rpartition('/')[2])
def test_pictures_of_a_report_are_put_side_by_side(run, words):
    figure, made = run.folder / words[-1], run.folder / words[1].partition('=')[2]
    figure.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new('RGB', (60, 40)).save(figure)
    made.parent.mkdir(parents=True, exist_ok=True)
    run(words)
    with PIL.Image.open(made) as picture:
        assert picture.width >= int(words[3].partition('=')[2])


@pytest.mark.slow
def test_a_sweep_has_a_run_for_every_combination(run):
    printed = run(as_printed(
        'python -m experiments.sweep --config=configs/cifar10.py --sweep model.depth=20,32,44,56 '
        '--sweep model.plain=false,true --sweep seed=0,1,2',
        '--dry_run --config.data.source=synthetic'))
    assert len({line for line in printed.splitlines() if 'resnet_jax.main' in line}) == 24
