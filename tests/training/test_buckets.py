"""Runs in a bucket: the same bits as on disk, through kills and failing requests."""

import json
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import storage
from resnet_jax.errors import UserError
from resnet_jax.training import loop, writers
from resnet_jax.weights.checkpoint import steps_in
from tests import tiny, xla_options
from tests.distributed.test_processes import Job, main
from tests.training.test_faults import build_once, measured
from tests.training.test_train import arrays, assert_same_bits, logged, points, rows

RUN = ['--config=configs/digits_r20.py', '--config.model.depth=8', '--config.model.width=8',
       '--config.batch_size=64', '--config.num_steps=60', '--config.mesh.data=1',
       '--config.schedule.name=constant', '--config.checkpoint.every_steps=4',
       '--config.eval.every_steps=20', '--config.log.every_steps=4']
SHORT = {'num_steps': 20, 'eval.every_steps': 10}
ONE_DEVICE = {'XLA_FLAGS': xla_options.quick(devices=1)}


@pytest.fixture(scope='module', autouse=True)
def built_once():
    with pytest.MonkeyPatch.context() as patch:
        build_once(patch, {})
        yield


@pytest.fixture(autouse=True)
def no_faults(request):
    if 'bucket' in request.fixturenames:
        request.getfixturevalue('bucket').fault = lambda request: None


def config():
    config = tiny.config()
    config.num_steps, config.log.every_steps = 8, 2
    config.checkpoint.every_steps, config.eval.every_steps = 4, 4
    config.eval.recalibrate_batches = 2
    return config


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp('on_disk')
    loop.train(config(), folder)
    return folder


def assert_same_run(a, b, step):
    assert_same_bits(arrays(a, step), arrays(b, step))
    assert measured(a) == measured(b)
    assert points(a) == logged(a)
    for name in ('config.json', 'data.json', 'classes.txt'):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or (a / name).read_text() == (b / name).read_text()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_disk_and_asks_nothing_after_its_end(bucket, on_disk):
    workdir = storage.path_of('gs://runs/plain/run')
    bucket.fault = lambda request: None if 'plain' in request else 403  # of the whole bucket
    loop.train(config(), workdir)
    asked = len(bucket.requests)
    assert_same_run(workdir, on_disk, 8)
    assert_same_bits(arrays(workdir, 8, 'recalibrated'), arrays(on_disk, 8, 'recalibrated'))
    image = np.zeros((8, 8, 1), np.uint8)
    found = [resnet_jax.load(str(path)).predict(image) for path in (workdir, on_disk)]
    np.testing.assert_array_equal(*found)
    read = len(bucket.requests)
    time.sleep(1)
    assert len(bucket.requests) == read > asked


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_and_forgets_rows_that_will_be_measured_again(bucket, on_disk):
    workdir = storage.path_of('gs://runs/resumed')

    def stop(request):
        if 'checkpoints%2F8' in request or 'checkpoints/8' in request:
            return 403  # the second checkpoint is never written

    bucket.fault = stop
    with pytest.raises(UserError, match=r'resumed cannot be written to: access is denied'):
        loop.train(config(), workdir)
    bucket.fault = lambda request: None
    loop.train(config(), workdir)
    assert_same_run(workdir, on_disk, 8)


@pytest.mark.slow
@pytest.mark.parametrize('fault', [503, 'reset'])
def test_requests_that_fail_for_a_moment_are_repeated(bucket, on_disk, fault):
    workdir, failed = storage.path_of(f'gs://runs/failing_{fault}'), []
    wanted = ['metrics.jsonl', 'config.json', 'ocdbt', 'commit_success']

    def fail_once(request):
        for name in wanted:
            if name in request and name not in failed and request.startswith('POST'):
                failed.append(name)
                return fault

    bucket.fault = fail_once
    loop.train(config(), workdir)
    assert sorted(failed) == sorted(wanted)
    assert_same_run(workdir, on_disk, 8)


def test_a_bucket_that_is_missing_or_denied_is_named_before_anything_is_read(bucket):
    with pytest.raises(UserError, match='there is no bucket gs://elsewhere; create it with'):
        loop.train(config(), storage.path_of('gs://elsewhere/run'))
    with pytest.raises(UserError, match='there is no bucket gs://elsewhere'):
        resnet_jax.load('gs://elsewhere/run')
    bucket.fault = lambda request: 403
    with pytest.raises(UserError, match=r'gs://runs cannot be used: access is denied; run `gcloud'):
        loop.train(config(), storage.path_of('gs://runs/denied'))


def test_a_bucket_that_never_answers_is_given_up_at_the_start(bucket, monkeypatch):
    for name in ('REACH_SECONDS', 'LEAST_REACH_SECONDS'):
        monkeypatch.setattr(storage, name, 1)
    bucket.fault = lambda request: 503
    started = time.monotonic()
    with pytest.raises(UserError, match=r'gs://runs cannot be used: the storage service did not '
                                        r'answer within [1-9] s; check the network'):
        loop.train(config(), storage.path_of('gs://runs/silent'))
    assert time.monotonic() - started < 15  # gcsfs would repeat the request for half a minute


def test_errors_of_buckets_are_one_sentence(bucket):
    from gcsfs.retry import HttpError
    from google.auth.exceptions import DefaultCredentialsError

    for error, sentence in (
            (HttpError({'code': 503, 'message': 'Backend Error'}), 'check the network'),
            (HttpError({'code': 401, 'message': 'Anonymous'}), 'access is denied'),
            (HttpError({'code': 400, 'message': 'Odd'}), 'refused a request'),
            (OSError('Forbidden: b/runs/o'), 'access is denied'),
            (ConnectionResetError('reset by peer'), 'did not answer'),
            (DefaultCredentialsError('none'), 'no valid credentials'),
            (ValueError('PERMISSION_DENIED: Error writing "gs://runs/a"'), 'access is denied')):
        wrapped = RuntimeError('while saving')
        wrapped.__cause__ = error
        assert sentence in storage.problem(error) and sentence in storage.problem(wrapped)
    assert storage.problem(ZeroDivisionError('division by zero')) is None


def test_other_urls_are_refused():
    with pytest.raises(UserError, match=r'only gs://BUCKET/FOLDER is supported, and s3://'):
        storage.path_of('az://bucket/run')
    with pytest.raises(UserError, match=r'only shards .* use a folder, and copy it with `aws s3'):
        storage.path_of('s3://bucket/run')
    with pytest.raises(UserError, match='names no bucket'):
        storage.path_of('gs://')


def test_a_log_in_a_bucket_is_written_at_intervals_and_before_a_checkpoint(bucket, monkeypatch):
    workdir = storage.path_of('gs://runs/log')
    writer = writers.MetricsWriter(workdir, [], 0)
    writer.write(1, {'train/loss': 2.0})
    assert rows(workdir) == []
    writer.sync()
    assert rows(workdir) == [{'step': 1, 'train/loss': 2.0}]
    monkeypatch.setattr(storage, 'UPLOAD_SECONDS', 0)
    writer.write(2, {'train/loss': 1.0})
    assert [row['step'] for row in rows(workdir)] == [1, 2] and points(workdir) == logged(workdir)
    asked = len(bucket.requests)
    writer.sync()
    assert len(bucket.requests) == asked


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_with_the_bits_of_a_run_on_disk(bucket, commands, tmp_path):
    straight = commands.run('resnet_jax.main', *RUN, f'--workdir={tmp_path}', env=ONE_DEVICE)
    assert straight.status == 0, straight.errors
    args = ['resnet_jax.main', *RUN, '--workdir=gs://runs/killed']
    env, moments = ONE_DEVICE | bucket.variables, random.Random(15)
    workdir, kills, resumed = storage.path_of('gs://runs/killed'), 0, 0
    while kills < 10:
        run = commands.start(*args, env=env)
        asked = len(bucket.requests)
        target = asked + moments.randrange(60, 260)  # which spreads over all that it writes
        end = time.monotonic() + 300
        while len(bucket.requests) < target and run.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
        resumed += 'resuming from step' in run.output
    last = commands.run(*args, env=env)
    assert last.status == 0, last.errors
    print(f'{kills} kills, of which {resumed} after resuming')
    assert kills == 10 and resumed >= 3
    assert_same_run(workdir, tmp_path, 60)
    evaluated = commands.run('resnet_jax.evaluate', '--workdir=gs://runs/killed', '--json', env=env)
    assert evaluated.status == 0, evaluated.errors
    found = json.loads(evaluated.output.splitlines()[-1])
    assert rows(tmp_path)[-1]['eval/loss'] == pytest.approx(found['eval/loss'], rel=1e-4)
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / 'image.png')
    predicted = [commands.run('resnet_jax.predict', f'--checkpoint={path}', '--json',
                              str(tmp_path / 'image.png'), env=env) for path in (workdir, tmp_path)]
    assert predicted[0].status == 0, predicted[0].errors
    assert predicted[0].output == predicted[1].output != ''


@pytest.mark.slow
def test_two_processes_killed_in_a_bucket_end_with_the_bits_of_two_on_disk(
        bucket, commands, tmp_path):
    workdir = storage.path_of('gs://runs/two')
    job = Job(commands, *main(tmp_path, **SHORT))
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    job = Job(commands, *main(workdir, **SHORT), env=lambda *_: bucket.variables)
    job.until(lambda: steps_in(workdir / 'checkpoints'))
    job.processes[1].send_signal(signal.SIGKILL)
    assert job.wait()[1] == -signal.SIGKILL
    job = Job(commands, *main(workdir, **SHORT), env=lambda *_: bucket.variables)
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    assert 'resuming from step' in job.output(0)
    last = steps_in(tmp_path / 'checkpoints')[-1]
    assert_same_run(workdir, tmp_path, last)


SWEEP = ['--config=configs/digits_r20.py', '--config.model.depth=8', '--config.model.width=8',
         '--config.batch_size=64', '--config.num_steps=40', '--config.mesh.data=1',
         '--config.schedule.name=constant', '--config.checkpoint.every_steps=4',
         '--config.eval.every_steps=40', '--config.log.every_steps=4', '--sweep=seed=0,1',
         '--parallel=1']


@pytest.mark.slow
def test_a_sweep_in_a_bucket_that_was_stopped_ends_with_the_results_of_one_on_disk(
        bucket, commands, tmp_path):
    env = ONE_DEVICE | bucket.variables | {'TMPDIR': str(tmp_path / 'tmp')}
    (tmp_path / 'tmp').mkdir()
    on_disk = commands.run('experiments.sweep', *SWEEP, f'--workdir={tmp_path}/sweep', env=env)
    assert on_disk.status == 0, on_disk.errors
    workdir, args = storage.path_of('gs://runs/sweep'), [*SWEEP, '--workdir=gs://runs/sweep']
    sweep = commands.start('experiments.sweep', *args, env=env)
    sweep.until(lambda: steps_in(workdir / 'seed=0' / 'checkpoints'))
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait() == 128 + signal.SIGTERM, sweep.output + sweep.errors
    sweep = commands.run('experiments.sweep', *args, env=env)
    assert sweep.status == 0, sweep.output + sweep.errors
    assert 'resuming from step' in (workdir / 'seed=0' / 'log.txt').read_text()
    found, expected = (
        [{name: row[name] for name in ('run', 'status', 'steps', 'final_error', 'best_error')}
         for row in map(json.loads, (path / 'ledger.jsonl').read_text().splitlines())]
        for path in (workdir, tmp_path / 'sweep'))
    assert found == expected and len(found) == 2
    asked = len(bucket.requests)
    again = commands.run('experiments.sweep', *args, env=env)
    assert again.status == 0 and '[' not in again.output
    assert not any(request.startswith('POST') for request in bucket.requests[asked:])


def test_a_sweep_in_a_bucket_that_is_missing_is_one_sentence_and_figures_need_a_folder(
        bucket, commands):
    for name, args, sentence in (
            ('sweep', [*SWEEP, '--workdir=gs://elsewhere/sweep'], 'there is no bucket gs://elsew'),
            ('sweep', [*SWEEP, '--workdir=s3://runs/sweep'], 's3://runs/sweep cannot be used'),
            ('degradation', ['--workdir=gs://runs/figure'], '--workdir=gs://runs/figure must be')):
        process = commands.run(f'experiments.{name}', *args, env=bucket.variables)
        assert process.status == 1
        assert process.errors.startswith(f'error: {sentence}') and process.errors.count('\n') == 1
