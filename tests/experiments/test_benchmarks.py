"""Every benchmark runs on CPU with small settings, and its JSON says what the table does."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.printed import as_printed

ROOT = pathlib.Path(__file__).parents[2]
TINY = ('--config=configs/digits_r20.py', '--config.model.depth=8', '--config.model.width=4',
        '--config.batch_size=16', '--config.model.virtual_batch_size=8', '--config.mesh.data=1',
        '--config.schedule.warmup=none')
CIFAR = ' '.join(TINY[1:]) + (
    ' --config.data.source=synthetic --config.num_steps=2 --config.eval.batch_size=250 '
    '--config.eval.every_steps=none --config.checkpoint.every_steps=none')

DETECTOR = ('--depth=18 --height=64 --width=96 --proposals=4 --regions=4 --classes=3 --repeats=1')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """Programs that one benchmark compiles serve the next."""
    return tmp_path_factory.mktemp('compiled')


def benchmark(words: list[str], tmp_path: pathlib.Path, cache: pathlib.Path) -> dict:
    """Runs it as a user does; its JSON and its table.

    Args:
      words: the script and its flags, as of `as_printed`.
      tmp_path: for the JSON.
      cache: for compiled programs.
    """
    path = tmp_path / 'result.json'
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_COMPILATION_CACHE_DIR': str(cache)}
    environment['XLA_FLAGS'] = environment['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
    process = subprocess.run(
        [sys.executable, *words, f'--json={path}'], cwd=ROOT, capture_output=True, text=True,
        env=environment)
    assert process.returncode == 0, process.stderr
    result = json.loads(path.read_text())
    assert result['command'].startswith(f'python {words[0]}')
    table = [line.split('|')[1].strip() for line in process.stdout.splitlines() if '|' in line]
    return result | {'table': table[2:]}


@pytest.mark.slow
def test_train_step_gives_every_contender_as_many_passes_as_asked(tmp_path, cache):
    result = benchmark(as_printed(
        'python experiments/benchmarks/train_step.py --config=configs/cifar10_r20.py '
        '--config.data.source=synthetic --variant=model.unroll=False --variant=xla_preset=none '
        '--steps=8 --repeats=7 --json=result.json',
        CIFAR + ' --steps=1 --repeats=2 --nopytorch'), tmp_path, cache)
    rows = result['rows']
    assert result['table'] == list(rows) == [
        'this program', 'this program, model.unroll=False', 'this program, xla_preset=none']
    for row in rows.values():
        assert len(row['passes_milliseconds']) == 2
        assert row['images_per_second'] == pytest.approx(16e3 / row['milliseconds'])
        assert row['mfu'] is None  # no peak is published for a CPU
        assert row['peak_bytes'] > 1e8
    assert rows['this program']['speed_over_first'] == 1


def test_what_cannot_be_run_reads_not_run(tmp_path, cache):
    # No network compiles in a millisecond.
    result = benchmark(as_printed(
        'python experiments/benchmarks/compile_time.py --config=configs/cifar10_r20.py '
        '--depths=20,56,110,1202 --json=result.json',
        CIFAR + ' --depths=8 --repeats=1 --limit=0.001'), tmp_path, cache)
    assert result['rows']['depth 8, scanned'] == {
        kind: {'not_run': 'not done after 0.001 s'} for kind in ('cold', 'warm')}
    assert result['table'] == ['depth 8, scanned', 'depth 8, unrolled']


def test_a_pass_too_short_for_the_clock_has_no_ratio(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'experiments' / 'benchmarks')
    turns = importlib.import_module('turns')
    one, two, none = (turns.Outcome(passes=[{'seconds': value}]) for value in (3.0, 2.0, 0.0))
    assert turns.ratio(one, two, 'seconds') == 1.5
    assert np.isnan(turns.ratio(one, none, 'seconds'))


@pytest.mark.slow
def test_startup_reaches_the_first_step_after_the_compilation(tmp_path, cache):
    result = benchmark(as_printed(
        'python experiments/benchmarks/startup.py --config=configs/digits_r20.py --repeats=5 '
        '--json=result.json', ' '.join(TINY[1:]) + ' --repeats=1'), tmp_path, cache)
    assert result['table'] == ['cold', 'warm', 'warm over cold']
    for kind in ('cold', 'warm'):
        row = result['rows'][kind]
        assert 0 < row['announced'] < row['compiled'] < row['first_step']


@pytest.mark.slow
def test_cifar_adds_up_the_pieces_of_a_run(tmp_path, cache):
    words = as_printed(
        'python experiments/benchmarks/cifar.py --config=configs/cifar10_r20.py '
        '--config.data.source=folder --config.data.path=cifar10 --json=result.json',
        CIFAR + f' --workdir={tmp_path}/runs --programs=ours')
    first = benchmark(words, tmp_path, cache)
    row = first['rows']['ours']
    assert row['finished'] and row['evaluated']['step'] == 2
    assert row['evaluated']['eval/count'] == 250
    assert first['rows']['fair'] == {'not_run': 'not chosen'}
    again = benchmark(words, tmp_path, cache)
    assert again['rows']['ours'] == row  # what is finished is not run again


@pytest.mark.slow
def test_pytorch_programs_go_on_where_they_stopped(tmp_path):
    pytest.importorskip('torch', reason="needs PyTorch: pip install -e '.[torch]'")

    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'data.npz', mean=np.float32(0.5), std=np.float32(1), **{
        f'{split}_{kind}': rng.integers(0, 256, (20, 8, 8, 3), np.uint8) if kind == 'images'
        else rng.integers(0, 10, 20) for split in ('train', 'test')
        for kind in ('images', 'labels')})
    recipe = {
        'family': 'cifar', 'depth': 8, 'width': 4, 'stem_width': None, 'plain': False,
        'shortcut': 'A', 'stride_in': 'v1', 'num_classes': 10, 'seed': 0, 'num_steps': 2,
        'batch_size': 8,
        'crop_padding': 1, 'flip': True, 'learning_rate': 0.1, 'boundaries': [1], 'factor': 0.1,
        'warmup': 'none', 'warmup_learning_rate': 0.01, 'warmup_error': 80.0,
        'warmup_window': 20, 'momentum': 0.9, 'weight_decay': 1e-4, 'eval_every_steps': 2,
        'eval_batch_size': 10}
    for variant in ('--fair', '--workers=1'):
        for num_steps in (2, 4):
            (tmp_path / 'recipe.json').write_text(json.dumps(recipe | {'num_steps': num_steps}))
            subprocess.run(
                [sys.executable, 'experiments/benchmarks/torch_cifar.py', variant,
                 f'--recipe={tmp_path}/recipe.json', f'--data={tmp_path}/data.npz',
                 f'--workdir={tmp_path}/{variant}'], cwd=ROOT, check=True, env=os.environ)
        rows = [json.loads(line)
                for line in (tmp_path / variant / 'metrics.jsonl').read_text().splitlines()]
        assert [row['step'] for row in rows] == [2, 4]
        assert {row['eval/count'] for row in rows} == {20}


def test_gpu_traffic_counts_kernels_or_says_what_is_missing(tmp_path, cache, commands):
    if importlib.util.find_spec('jax_plugins') is None:
        process = commands.run('experiments/benchmarks/gpu_traffic.py', *TINY)
        assert process.status == 1
        assert process.errors.splitlines()[-1].endswith("run `pip install -e '.[cuda]'`.")
        assert 'Traceback' not in process.errors
        return
    result = benchmark(['experiments/benchmarks/gpu_traffic.py', *TINY], tmp_path, cache)
    assert result['table'][-1] == 'all' and result['kernels'] > 50
    assert result['bytes'] == sum(row['bytes'] for row in result['kinds'].values())


@pytest.mark.slow
@pytest.mark.parametrize('words', [
    as_printed('python experiments/benchmarks/inference.py --batch_size=1 --repeats=5 --units=8',
               '--depth=18 --image_size=64 --repeats=1 --units=1'),
    as_printed('python experiments/benchmarks/inference.py --batch_size=16 --repeats=5 --units=1',
               '--depth=18 --image_size=32 --repeats=1')], ids=['one image', '16 images'])
def test_inference_times_every_runtime_and_onnxruntime_computes_what_pytorch_does(
        words, tmp_path, cache):
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    rows = benchmark(words, tmp_path, cache)['rows']
    assert list(rows) == ['this program', 'PyTorch', 'PyTorch, channels-last', 'onnxruntime']
    assert rows['onnxruntime']['result'] == pytest.approx(rows['PyTorch']['result'], rel=1e-4)
    assert min(row['milliseconds'] for row in rows.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(('words', 'train'), [
    (as_printed('python experiments/benchmarks/detection.py --json=result.json', DETECTOR), False),
    (['experiments/benchmarks/detection.py', '--train', *DETECTOR.split()], True)],
    ids=['inference', 'training'])
def test_the_detector_and_torchvisions_compute_the_same(tmp_path, cache, words, train):
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    result = benchmark(words, tmp_path, cache)
    row = result['rows']['all']
    assert list(row) == ['this program', 'torchvision C4', 'torchvision C4, channels-last',
                         'torchvision FPN']
    assert row['torchvision FPN'] == {'not_run': 'torchvision has it with ResNet-50 v1.5 only'}
    ours, theirs = row['this program'], row['torchvision C4']
    assert ours['speed_of_ours'] == 1 and theirs['speed_of_ours'] > 0
    if train:  # anchors and regions are drawn by other random numbers
        assert np.isfinite([ours['result'], theirs['result']]).all()
    else:
        assert ours['result'] == pytest.approx(theirs['result'], rel=1e-4)
