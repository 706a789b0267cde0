"""Sweeps: stopped and started again, failing runs, and the ledger that is left."""

import collections
import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import grid, ledger, machine, responses, runs, sweep, tables
from resnet_jax.config import leaves
from resnet_jax.distributed.sharding import create_mesh
from resnet_jax.errors import UserError
from resnet_jax.training.program import build
from resnet_jax.training.writers import read_rows
from tests import xla_options
from tests.experiments import fake_sweep

ROOT = pathlib.Path(__file__).parent.parent.parent
FAKE = ROOT / 'tests' / 'experiments' / 'fake_sweep.py'
BASE = ['--config=configs/digits.py', '--config.num_steps=30', '--config.schedule.warmup_steps=5',
        '--config.model.depth=8']


@pytest.fixture
def start(commands):
    """Starts a sweep of the stand-ins, or of the real thing."""
    def start(*args, name=FAKE):
        return commands.start(name, *args, env={'XLA_FLAGS': xla_options.quick(devices=1)})

    return start


def rows_of(workdir):
    path = workdir / 'ledger.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def starts_of(workdir):
    return {path.parent.name: len(path.read_text().splitlines())
            for path in workdir.glob('*/starts')}


@pytest.mark.parametrize(
    'how', [pytest.param('SIGTERM', marks=pytest.mark.slow),
            pytest.param('SIGKILL', marks=pytest.mark.slow)])
def test_a_stopped_sweep_goes_on_where_it_stopped(tmp_path, start, how):
    args = [*BASE, '--sweep=seed=0,1,2,3', f'--workdir={tmp_path}']
    number = getattr(signal, how)
    process = start(*args)
    # Two runs are done, and two others are under way.
    process.until(lambda: len(rows_of(tmp_path)) == 2 and len(starts_of(tmp_path)) == 4)
    process.send_signal(number)
    status = process.wait(timeout=60)
    left = {path.parent.name: int(path.read_text()) for path in tmp_path.glob('*/saved')}
    assert sorted(left.values())[-2:] == [30, 30]
    before = rows_of(tmp_path)
    assert [row['status'] for row in before] == ['finished'] * 2 + (
        [] if how == 'SIGKILL' else ['stopped'] * 2)
    if how == 'SIGKILL':  # nobody told the runs, and they go on; the next sweep waits for them
        assert status == -9
    else:
        assert status == 128 + number
        assert min(left.values()) < 30
        assert f'stopped by {how}; run the same command again to resume.' in process.errors

    process = start(*args)
    assert process.wait() == 0, process.errors
    rows = rows_of(tmp_path)
    assert sorted(row['run'] for row in rows) == [f'seed={seed}' for seed in range(4)]
    assert {row['status'] for row in rows} == {'finished'}
    starts = collections.Counter(starts_of(tmp_path).values())
    assert starts == ({1: 4} if how == 'SIGKILL' else {1: 2, 2: 2})
    seconds = {row['run']: row['seconds'] for row in rows}
    for row in before[2:]:  # the time of all starts counts
        assert seconds[row['run']] > row['seconds'] > 0 and row['error'] is None
    for row in rows:  # no step was done twice, and none left out
        steps = [line['step'] for line in read_rows(tmp_path / row['run'] / 'metrics.jsonl')]
        assert steps == list(range(1, 31))


@pytest.fixture
def fake(monkeypatch):
    """Runs of `fake_run` from within this process."""
    fake_sweep.install(monkeypatch.setattr)


def sweep_of(workdir, *sweeps, steps=3):
    cells = grid.cells([*BASE, f'--config.num_steps={steps}'], grid.parse(sweeps))
    return runs.run(cells, workdir)


def test_a_run_that_failed_is_a_row_with_its_error_and_is_tried_again(tmp_path, fake):
    found = sweep_of(tmp_path, 'seed=0,13,2')
    assert [row['status'] for row in found] == ['finished', 'failed', 'finished']
    assert found[1]['error'] == 'the loss became nan in step 7. (exit status 1)'
    assert found[1]['steps'] == 0 and found[2]['final_error'] == 2.5
    assert len(rows_of(tmp_path)) == 3 and all(row in found for row in rows_of(tmp_path))
    with pytest.raises(UserError, match='1 of 3 runs failed, the first, seed=13, with: the loss '
                                        'became nan'):
        runs.fail_if_any(found, tmp_path)

    (tmp_path / 'mended').touch()
    runs.fail_if_any(sweep_of(tmp_path, 'seed=0,13,2'), tmp_path)
    rows = rows_of(tmp_path)
    assert len(rows) == 3 and {row['status'] for row in rows} == {'finished'}
    assert {row['error'] for row in rows} == {None}
    assert starts_of(tmp_path) == {'seed=0': 1, 'seed=13': 2, 'seed=2': 1}


def test_a_larger_sweep_adds_runs_and_a_table_has_means_and_deviations(tmp_path, fake, capsys):
    sweep_of(tmp_path, 'model.plain=true,false', 'seed=0,3')
    output = capsys.readouterr().out
    assert '[4/4]' in output and 'about 0:00:' in output
    found = sweep_of(tmp_path, 'seed=0,3,5', 'model.plain=true,false')
    assert starts_of(tmp_path).keys() == {row['run'] for row in found}
    assert set(starts_of(tmp_path).values()) == {1} and len(found) == 6
    of_seeds = np.array([0.5, 3.5, 5.5])
    cell = f'{of_seeds.mean():.2f} ± {of_seeds.std(ddof=1):.2f}'
    lines = [line.split() for line in tables.over_seeds(found).splitlines()]
    assert [line[:2] for line in lines[2:4]] == [['True', '3'], ['False', '3']]
    assert [' '.join(line[2:5]) for line in lines[2:4]] == [cell, cell]
    assert ' '.join(lines[2][-6:-3]) == '1,002 ± 0'

    cells = grid.cells([*BASE, '--config.num_steps=3', '--config.schedule.learning_rate=0.2'],
                       grid.parse(['model.plain=true', 'seed=0']))
    with pytest.raises(UserError, match=r'holds a sweep of another config .*learning_rate: 0\.05 '
                                        r'-> 0\.2\); choose another --workdir'):
        runs.run(cells, tmp_path)


def test_a_dry_run_prints_the_commands_that_are_missing(tmp_path, fake, capsys):
    sweep_of(tmp_path, 'seed=0')
    capsys.readouterr()
    cells = grid.cells([*BASE, '--config.num_steps=3'], grid.parse(['seed=0,1,2']))
    sweep.print_commands(cells, tmp_path)
    output, notes = capsys.readouterr()
    assert '2 of 3 runs are missing' in notes
    assert [line.split()[-2:] for line in output.splitlines()] == [
        ['--config.seed=1', f'--workdir={tmp_path}/seed=1'],
        ['--config.seed=2', f'--workdir={tmp_path}/seed=2']]
    assert all('--config=configs/digits.py --config.num_steps=30' in line
               for line in output.splitlines())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ['seed=0']

    # They are done elsewhere; the sweep enters them without running anything.
    for line in output.splitlines():
        pathlib.Path(line.split('--workdir=')[1]).mkdir()
        subprocess.run([sys.executable, *line.split()[1:]], cwd=ROOT, check=True)
    found = sweep_of(tmp_path, 'seed=0,1,2')
    assert set(starts_of(tmp_path).values()) == {1}
    assert [row['final_error'] for row in found] == [0.5, 1.5, 2.5]
    assert [row['seconds'] is None for row in found] == [False, True, True]


def test_a_dry_run_shows_the_real_command(tmp_path):
    cell, = grid.cells(BASE, grid.parse(['seed=1']))
    assert runs.command(cell, tmp_path) == [
        sys.executable, '-m', 'resnet_jax.main', *BASE, '--config.seed=1',
        f'--workdir={tmp_path}/seed=1']


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_share_their_programs(tiny_config):
    programs = []
    for seed in (0, 2**31 + 5):
        tiny_config.seed = seed
        program = build(tiny_config, create_mesh(tiny_config))
        inputs = next(program.train_data.inputs(0))
        programs.append(jax.jit(program.train_step).lower(program.state, inputs).as_text())
    assert programs[0] == programs[1]


@pytest.mark.slow
def test_the_real_thing_stopped_while_it_trains(tmp_path, start):
    args = ['--config=configs/digits.py', '--config.model.depth=8', '--config.model.width=8',
            '--config.num_steps=200', '--config.batch_size=64',
            '--config.checkpoint.every_steps=50',
            f'--config.compilation_cache={tmp_path}/cache', '--sweep=seed=3',
            f'--workdir={tmp_path}/sweep', '--parallel=1']
    metrics = tmp_path / 'sweep' / 'seed=3' / 'metrics.jsonl'
    process = start(*args, name='experiments.sweep')
    process.until(lambda: any(row['step'] >= 50 for row in read_rows(metrics)))
    process.send_signal(signal.SIGINT)  # as Ctrl-C does
    assert process.wait(timeout=120) == 130
    stopped, = rows_of(tmp_path / 'sweep')
    assert stopped['status'] == 'stopped' and stopped['steps'] >= 50
    process = start(*args, name='experiments.sweep')
    assert process.wait() == 0, process.errors
    row, = rows_of(tmp_path / 'sweep')
    lines = read_rows(metrics)
    assert row['steps'] == 200 and row['error'] is None and row['status'] == 'finished'
    assert row['final_error'] == lines[-1]['eval/top1_error']
    assert row['best_error'] == min(line['eval/top1_error'] for line in lines
                                    if 'eval/top1_error' in line)
    losses = {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}
    assert row['final_train_loss'] == losses[200] and len(losses) == 8
    assert row['images_per_second'] > 0 and row['seconds'] > stopped['seconds'] > 0
    assert row['versions'].keys() >= {'python', 'jax', 'flax'} and row['machine']['cores'] >= 1
    assert row['config']['model.width'] == 8 and row['overrides'] == {'seed': 3}
    log = (metrics.parent / 'log.txt').read_text()
    assert 'stopped by SIGINT' in log and 'resuming from step' in log
    deviations = responses.of_run(row, tmp_path / 'sweep', None)
    assert len(deviations) == 7 and all(0.3 < value < 3 for value in deviations)
    stored = metrics.parent / 'config.json'
    fields = json.loads(stored.read_text())
    fields['mesh']['data'] = 8  # measured on one all the same
    stored.write_text(json.dumps(fields))
    assert responses.of_run(row, tmp_path / 'sweep', None) == deviations


@pytest.mark.parametrize(('sweeps', 'sentence'), [
    (['model.dept=20'], 'the config has no field model.dept; did you mean model.depth?'),
    (['model.depth=deep'], 'model.depth=deep: .*invalid literal for int'),
    (['model.plain=maybe'], 'model.plain=maybe: .*Non-boolean'),
    (['model=20'], 'model is a section of the config; set one of its fields.'),
    (['seed'], 'give a field and values'),
    (['seed=0,,1'], 'give a field and values'),
    (['seed=0', 'seed=1'], 'names seed twice'),
    (['schedule.learning_rate=0.1,.10'], 'schedule.learning_rate has the value 0.1 twice'),
    (['model.depth=20,21'], r'model.depth=21: model.depth must be 6n \+ 2 .* the nearest is 20'),
    (['mesh.data=1,3'], 'mesh.data=3: .* needs at least 3 devices'),
    (['schedule.name=cosine,cosin'], 'schedule.name=cosin: schedule.name must be one of'),
    (['data.source=digits,folder'], 'data.source=folder: .*data.path'),
])
def test_mistakes_are_named_before_anything_runs(sweeps, sentence):
    with pytest.raises(UserError, match=sentence):
        grid.check(grid.cells(['--config=configs/digits.py'], grid.parse(sweeps)), 1)


def test_a_field_without_values_is_named():
    with pytest.raises(UserError, match='seed has no values; give at least one'):
        grid.cells(['--config=configs/digits.py'], {'model.depth': ['20'], 'seed': []})


def test_values_have_the_types_of_the_config_and_commas_in_brackets_stay():
    cells = grid.cells(['--config=configs/digits.py'], grid.parse(
        ['schedule.boundaries=(200,300),(400,)', 'model.virtual_batch_size=none,32', 'seed=7']))
    assert [(cell.overrides['schedule.boundaries'], cell.config.model.virtual_batch_size,
             cell.config.seed) for cell in cells] == [
        ([200, 300], None, 7), ([200, 300], 32, 7), ([400], None, 7), ([400], 32, 7)]
    assert len({cell.name for cell in cells}) == 4
    for cell in cells:
        assert '/' not in cell.name and '(' not in cell.name
        assert list(cell.overrides) == sorted(cell.overrides)


def test_a_config_comes_back_from_its_fields_and_fields_of_before_are_filled_in():
    cell, = grid.cells(BASE, grid.parse(['seed=1']))
    fields = leaves(cell.config)
    assert leaves(grid.rebuild(fields)) == fields | {'model.unroll': False}
    older = {name: value for name, value in fields.items()
             if name not in ('task', 'model.bottleneck_width')}
    assert grid.rebuild(older) == grid.rebuild(fields)


def test_checking_and_counting_leave_the_configs_as_they_are():
    cells = grid.cells(['--config=configs/digits.py', '--config.model.unroll=true',
                        '--config.mesh.data=1'], grid.parse(['model.depth=8']))
    before = cells[0].config.to_json()
    grid.check(cells, 1)
    runs.step_costs(cells)
    assert cells[0].config.to_json() == before


def cells_of(*arguments):
    return [grid.cells(['--config=configs/digits.py', *arguments], {})[0].config]


def test_a_machine_is_shared_out():
    cpu = machine.Machine('cpu', 'a processor', 1, (0, 1, 2, 3))
    gpus = machine.Machine('gpu', 'a GPU', 8, (0, 1))
    assert [share.cores for share in machine.share_out(cpu, None, cells_of() * 9)] == [
        (0,), (1,), (2,), (3,)]
    assert [share.cores for share in machine.share_out(cpu, 2, cells_of() * 9)] == [(0, 2), (1, 3)]
    assert len(machine.share_out(cpu, None, cells_of())) == 1
    assert len(machine.share_out(gpus, None, cells_of() * 9)) == 8
    shares = machine.share_out(gpus, None, cells_of('--config.mesh.data=4') * 9)
    assert [share.environment['CUDA_VISIBLE_DEVICES'] for share in shares] == ['0,1,2,3', '4,5,6,7']
    assert machine.devices_of(gpus, shares) == 4
    tpus = machine.Machine('tpu', 'a TPU', 4, (0, 1))
    assert machine.share_out(tpus, None, cells_of() * 9) == [machine.Share({}, (0, 1))]
    for wrong, parallel in ((tpus, 2), (gpus, 9), (cpu, 5)):
        with pytest.raises(UserError):
            machine.share_out(wrong, parallel, cells_of() * 9)


@pytest.mark.slow
def test_checking_a_sweep_takes_hold_of_no_accelerator(commands):
    code = '''
from experiments import grid, runs
from jax._src import xla_bridge
cells = grid.cells(['--config=configs/digits.py'], grid.parse(['model.depth=8,14']))
grid.check(cells, 1)
runs._Progress(cells)
print(xla_bridge.backends_are_initialized())
'''
    assert commands.run('-c', code).output.strip() == 'False'


def test_a_damaged_ledger_is_told(tmp_path):
    (tmp_path / 'ledger.jsonl').write_text('{"run": "a"')
    with pytest.raises(UserError, match=r'is not a ledger of a sweep .*; move it away'):
        ledger.Ledger(tmp_path / 'ledger.jsonl')
    with pytest.raises(UserError, match='there is no ledger'):
        ledger.read(tmp_path / 'nowhere')


def test_the_table_counts_failed_runs():
    row = {'overrides': {'seed': 0}, 'status': 'finished', 'final_error': 1.0, 'best_error': 1.0,
           'final_train_loss': 0.1, 'images_per_second': 10.0, 'seconds': None}
    text = tables.over_seeds([row, {**row, 'status': 'failed'}])
    assert text.splitlines()[0].split()[0] == 'runs' and 'failed' in text.splitlines()[0]
    assert text.splitlines()[2].split() == ['1', '1.00', '1.00', '0.1000', '10', '-', '1']
