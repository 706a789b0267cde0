"""The loop, from within: what it writes, and how it stops and resumes."""

import json
import os
import pathlib
import shutil
import signal
import struct
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

import resnet_jax
from resnet_jax import data, storage
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification import inference
from resnet_jax.tasks.classification.scores import score
from resnet_jax.training import log, loop
from resnet_jax.training import profiler as profiler_lib
from resnet_jax.training.interval import Interval
from tests import tiny


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def points(workdir):
    """The scalars that TensorBoard shows: {(tag, step): value}."""
    shown = {}
    for path in sorted(workdir.glob('events.out.tfevents.*')):
        content = path.read_bytes()
        while content:
            length, = struct.unpack('<Q', content[:8])
            event = event_pb2.Event.FromString(content[12:12 + length])
            content = content[16 + length:]
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    return shown


def logged(workdir):
    """The same of metrics.jsonl."""
    return {(tag, row['step']): np.float32(value) for row in rows(workdir)
            for tag, value in row.items() if tag != 'step'}


def arrays(workdir, step, item='default'):
    """Every array of a checkpoint, by name: of its state, or of what is stored beside it."""
    folder = storage.absolute(workdir) / 'checkpoints' / str(step) / item
    handler = ocp.PyTreeCheckpointHandler()
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                           handler.metadata(folder).tree)  # whatever devices it was saved from
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=on_host))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_up_to_rounding(a, b):
    """Of programs compiled apart, which may round otherwise; a wrong step differs by far more."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The folder of a finished run of the tiny config."""
    workdir = tmp_path_factory.mktemp('finished')
    loop.train(tiny.config(), workdir)
    return workdir


def test_a_run_leaves_its_config_metrics_checkpoints_and_tensorboard_files(finished):
    config = json.loads((finished / 'config.json').read_text())
    assert config['model']['depth'] == 8
    assert list(finished.glob('events.out.tfevents.*'))
    assert sorted(int(p.name) for p in (finished / 'checkpoints').iterdir())[-1] == 20
    written = rows(finished)
    assert [row['step'] for row in written if 'train/loss' in row] == [5, 10, 15, 20]
    assert [row['step'] for row in written if 'eval/loss' in row] == [10, 20]
    for row in written:
        tags = {'train/loss', 'train/top1_error', 'train/learning_rate', 'train/images_per_second',
                'train/data_wait_fraction'} if 'train/loss' in row else {
                    'eval/loss', 'eval/top1_error', 'eval/top5_error', 'eval/count'}
        assert tags <= row.keys()
    assert written[-1]['eval/count'] == 297
    assert written[-1]['eval/top1_error'] == pytest.approx(
        100 * round(written[-1]['eval/top1_error'] * 2.97) / 297)


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    before = rows(finished), arrays(finished, 20)
    values = loop.train(tiny.config(), finished)
    assert 'nothing to do: all 20 steps are complete' in capsys.readouterr().out
    assert values['eval/top1_error'] == before[0][-1]['eval/top1_error']
    assert rows(finished) == before[0]
    assert_same_bits(arrays(finished, 20), before[1])


@pytest.fixture(scope='module')
def ten_steps(tmp_path_factory):
    """The folder of a run of 10 steps, with a checkpoint of the last one."""
    workdir = tmp_path_factory.mktemp('ten')
    config = tiny.config()
    config.num_steps = config.checkpoint.every_steps = 10
    loop.train(config, workdir)
    return workdir


def test_more_steps_go_on_from_the_end_and_no_row_is_doubled(
        finished, ten_steps, tmp_path, capsys):
    workdir = shutil.copytree(ten_steps, tmp_path / 'run')
    first = rows(workdir)
    with (workdir / 'metrics.jsonl').open('a') as file:  # of steps that are not in the checkpoint
        file.write(json.dumps({'step': 15, 'train/loss': 1.0}) + '\n{"step": 20, "tra')
    config = tiny.config()
    config.checkpoint.every_steps = 10
    loop.train(config, workdir)
    assert 'resuming from step 10' in capsys.readouterr().out
    assert_same_bits(arrays(workdir, 20), arrays(finished, 20))
    again = rows(workdir)
    assert again[:len(first)] == first
    assert [row['step'] for row in again] == [5, 10, 10, 15, 20, 20]


@pytest.mark.slow
def test_several_steps_a_call_compute_the_same_as_single_steps(finished, tmp_path):
    config = tiny.config()
    config.num_steps, config.steps_per_call = 7, 2
    loop.train(config, tmp_path)
    config.num_steps, config.steps_per_call = 20, 3  # lines of the log, and so calls, end at 10, 15
    loop.train(config, tmp_path)
    assert_same_up_to_rounding(arrays(tmp_path, 20), arrays(finished, 20))
    measured = {'train/images_per_second', 'train/data_wait_fraction'}
    got, expected = (
        [{tag: row[tag] for tag in row.keys() - measured} for row in rows(run) if row['step'] > 10]
        for run in (tmp_path, finished))
    assert got == [pytest.approx(row, rel=1e-4) for row in expected]
    assert [row['step'] for row in rows(tmp_path)] == [5, 7, 7, 10, 10, 15, 20, 20]


@settings(max_examples=200)
@given(st.integers(1, 9), st.integers(1, 60), st.data())
def test_calls_end_where_something_is_due_and_have_one_of_two_lengths(per_call, num_steps, data):
    config = tiny.config()
    every = data.draw(st.tuples(st.integers(1, 20), *[st.none() | st.integers(1, 20)] * 2))
    config.num_steps, config.steps_per_call = num_steps, per_call
    for section, steps in zip((config.log, config.eval, config.checkpoint), every, strict=True):
        section.every_steps = steps
    step = data.draw(st.integers(0, num_steps))
    ends, lengths, saves = {step}, set(), Interval(config, step)
    while count := loop.steps_of_next_call(config, step, saves):
        lengths.add(count)
        step += count
        ends.add(step)
    assert lengths <= {1, per_call} and step == num_steps
    due = {end for steps in every if steps for end in range(steps, num_steps, steps)}
    assert {end for end in due if end >= min(ends)} <= ends


@pytest.mark.slow
def test_the_host_pipeline_takes_several_steps_a_call_too(tmp_path):
    config = tiny.config()
    config.num_steps = 6
    config.data.pipeline = 'host'
    config.log.every_steps = 3
    for steps in (1, 3):
        config.steps_per_call = steps
        loop.train(config, tmp_path / str(steps))
    assert_same_up_to_rounding(arrays(tmp_path / '1', 6), arrays(tmp_path / '3', 6))


def test_a_trace_covers_the_whole_calls_that_have_its_steps(tmp_path, monkeypatch, capsys):
    traced = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda _: traced.append('start'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: traced.append('stop'))
    config = tiny.config()
    config.profile.start_step, config.profile.num_steps = 10, 5
    profiler = profiler_lib.Profiler(config, tmp_path)
    for step in range(0, 32, 8):
        profiler.before(step, step + 8)
        traced.append(step)
        profiler.after(step + 8, None)
    assert traced == [0, 'start', 8, 'stop', 16, 24]
    assert 'up to step 16' in capsys.readouterr().out


def test_a_run_that_is_further_than_asked_for_is_refused(finished):
    config = tiny.config()
    config.num_steps = 15
    with pytest.raises(UserError, match='is already at step 20, beyond num_steps=15'):
        loop.train(config, finished)


def test_other_data_than_before_is_refused(finished, tmp_path):
    workdir = tmp_path / 'copy'
    shutil.copytree(finished, workdir)
    fingerprints = json.loads((workdir / 'data.json').read_text())
    fingerprints['the training data'] = 'other'
    (workdir / 'data.json').write_text(json.dumps(fingerprints))
    with pytest.raises(UserError, match='the training data changed since the checkpoint'):
        loop.train(tiny.config(), workdir)


@pytest.mark.parametrize('name', ['file', 'file/below', 's3://bucket/run'])
def test_a_workdir_that_is_no_folder_is_named(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'--workdir'):
        loop.train(tiny.config(), pathlib.Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_another_config_in_the_same_folder_is_refused_and_nothing_is_lost(finished):
    before = (finished / 'config.json').read_text(), rows(finished)
    config = tiny.config()
    config.model.depth = 14
    config.optimizer.momentum = 0.8
    with pytest.raises(UserError, match=r'model.depth: 8 -> 14; optimizer.momentum: 0.9 -> 0.8'):
        loop.train(config, finished)
    assert ((finished / 'config.json').read_text(), rows(finished)) == before


@pytest.mark.parametrize(('number', 'per_call'), [
    pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 3, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_next_run_ends_with_the_same_bits(tmp_path, number, per_call):
    config = tiny.config()
    config.steps_per_call = per_call
    config.checkpoint.every_steps = None

    def stop_soon():
        end = time.monotonic() + 120
        while not ((tmp_path / 'metrics.jsonl').exists() and rows(tmp_path)):
            time.sleep(0.001)
            if time.monotonic() > end:
                return
        os.kill(os.getpid(), number)

    config.num_steps = 10**6
    thread = threading.Thread(target=stop_soon, daemon=True)
    thread.start()
    with pytest.raises(loop.Stopped) as stopped:
        loop.train(config, tmp_path)
    thread.join()
    assert stopped.value.signal == number
    step = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert f'checkpoint saved at step {step}' in str(stopped.value)

    config.num_steps = step + 7
    loop.train(config, tmp_path)
    straight = tmp_path / 'straight'
    loop.train(config, straight)
    assert_same_bits(arrays(tmp_path, step + 7), arrays(straight, step + 7))
    assert [row['step'] for row in rows(tmp_path)] == [row['step'] for row in rows(straight)]


def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(ten_steps, tmp_path):
    workdir = shutil.copytree(ten_steps, tmp_path / 'run')
    # From here on the rate makes the parameters overflow.
    config = tiny.config()
    config.num_steps, config.checkpoint.every_steps = 40, 10
    stored = json.loads((workdir / 'config.json').read_text())
    stored['schedule']['learning_rate'] = config.schedule.learning_rate = 1e30
    (workdir / 'config.json').write_text(json.dumps(stored))
    with pytest.raises(log.Diverged, match=(
            r'became (nan|inf) in step 1\d; the latest checkpoint is of step 10')):
        loop.train(config, workdir)
    assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['10']
    assert_same_bits(arrays(workdir, 10), arrays(ten_steps, 10))


@pytest.mark.slow
def test_recalibrated_statistics_are_stored_beside_the_state_and_evaluated(finished, tmp_path):
    config = tiny.config()
    config.eval.recalibrate_batches = 3
    loop.train(config, tmp_path)
    assert_same_bits(arrays(tmp_path, 20), arrays(finished, 20))
    plain = {name.removeprefix("['batch_stats']"): array
             for name, array in arrays(finished, 20).items() if name.startswith("['batch_stats']")}
    recalibrated = arrays(tmp_path, 20, 'recalibrated')
    assert plain.keys() == recalibrated.keys()
    assert all((plain[name] != recalibrated[name]).any() for name in plain)
    expected = rows(tmp_path)[-1]
    assert expected['eval/loss'] != rows(finished)[-1]['eval/loss']
    found = evaluated(tmp_path)
    for tag in ('eval/loss', 'eval/top1_error', 'eval/count'):
        assert found[tag] == pytest.approx(expected[tag], rel=1e-5)


def evaluated(workdir):
    """What `evaluate --workdir` says."""
    network = resnet_jax.load(workdir)
    size = network.config.data.image_size
    predictions = inference.predict([network], data.create_eval_source(network.config),
                                    Views('center_crop', size, size, ()), 128)
    return score(predictions.log_probabilities, predictions.labels).report()
