"""Shards in a bucket of S3, as the package `moto` keeps one on this machine."""

import importlib.util
import json
import os
import signal
import types

import numpy as np
import pytest

from resnet_jax import storage
from resnet_jax.data import folder, shard_writer
from resnet_jax.data.shards import Shards
from resnet_jax.data.sources import labelled
from resnet_jax.errors import UserError
from tests import xla_options
from tests.training.test_train import arrays, assert_same_bits, rows

MISSING = [name for name in ('s3fs', 'moto', 'flask_cors')
           if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[test-s3]'")
ENOUGH = 2**30


@pytest.fixture(scope='module')
def s3():
    """The bucket s3://images; the variables of the processes that use it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {'AWS_ENDPOINT_URL': f'http://{host}:{port}', 'AWS_ACCESS_KEY_ID': 'me',
                 'AWS_SECRET_ACCESS_KEY': 'secret', 'AWS_DEFAULT_REGION': 'us-east-1'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        storage.file_system('s3://').mkdir('images')
        yield variables
    server.stop()


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
    target = tmp_path_factory.mktemp('shards')
    for split, seed in (('train', 0), ('test', 1)):
        images = np.random.default_rng(seed).integers(0, 256, (70, 12, 12, 3), np.uint8)
        shard_writer.prepare(
            labelled(images, np.arange(70) % 10, 10, split), split, target, shorter_side=0,
            quality=90, images_per_shard=16, processes=1, skip_unreadable=False)
    return target


@pytest.fixture(scope='module')
def path(s3, on_disk):
    for file in on_disk.iterdir():
        storage.file_system('s3://').pipe_file(f'images/shards/{file.name}', file.read_bytes())
    return 's3://images/shards'


def test_images_are_those_of_the_disk(path, on_disk, tmp_path):
    local, source = Shards(str(on_disk), 'train'), Shards(path, 'train', tmp_path, ENOUGH)
    assert source.fingerprint == local.fingerprint and len(source) == 70
    for index in np.random.default_rng(0).permutation(70):
        assert source[index].image == local[index].image
        assert source[index].target == local[index].target
    assert len([*tmp_path.rglob('*.array_record')]) == 5  # of at most 16 images each


def test_a_shard_that_is_cut_is_found(path, on_disk, tmp_path):
    shard, files = sorted(on_disk.glob('train*.array_record'))[1], storage.file_system(path)
    source = Shards(path, 'train', tmp_path, ENOUGH)
    files.pipe_file(f'images/shards/{shard.name}', shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f'{shard.name} has .* bytes instead of'):
        source[16]
    files.pipe_file(f'images/shards/{shard.name}', shard.read_bytes())
    assert source[16].target == {'label': 6}


def test_what_is_missing_ends_in_one_sentence(path, tmp_path):
    with pytest.raises(UserError, match="holds no prepared split 'train'"):
        Shards(f'{path}/below', 'train', tmp_path, ENOUGH)
    with pytest.raises(UserError, match='no bucket s3://elsewhere; create it with `aws s3 mb s3://'):
        Shards('s3://elsewhere/shards', 'train', tmp_path, ENOUGH)
    with pytest.raises(UserError, match='names no bucket; give s3://BUCKET/FOLDER'):
        Shards('s3://', 'train', tmp_path, ENOUGH)


def test_the_first_look_asks_for_one_object_of_the_folder_however_many_are_beside_it(
        path, tmp_path):
    from moto.s3.models import s3_backends

    backend = s3_backends['123456789012']['aws']
    for number in range(3000):
        backend.put_object('images', f'{number}.txt', b'')
    files, found = storage.file_system(path), []

    def denied(model, params, **_):  # to a role that has only this folder
        if model.name == 'ListObjectsV2' and not params['query_string'].get(
                'prefix', '').startswith('shards/'):
            return types.SimpleNamespace(status_code=403), {
                'Error': {'Code': 'AccessDenied', 'Message': 'no'},
                'ResponseMetadata': {'HTTPStatusCode': 403}}

    def count(model, parsed, **_):
        found.append((model.name, parsed.get('KeyCount')))

    events = files.s3.meta.events
    events.register('before-call.s3', denied)
    events.register('after-call.s3', count)
    try:
        storage.check_reachable(storage.path_of(path, of_data=True))
        assert found == [('ListObjectsV2', 1)]
        assert len(Shards(path, 'train', tmp_path, ENOUGH)[0].image) > 0
        for other in ('s3://images/elsewhere', 's3://images'):
            with pytest.raises(UserError, match='s3://images cannot be used: access is denied'):
                Shards(other, 'train', tmp_path, ENOUGH)
    finally:
        events.unregister('before-call.s3', denied)
        events.unregister('after-call.s3', count)
        for number in range(3000):
            backend.delete_object('images', f'{number}.txt')


def client_error(code, status):
    """As s3fs raises it: an error of Python's, made from botocore's."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    return translate_boto_error(ClientError(
        {'Error': {'Code': code, 'Message': 'no'}, 'ResponseMetadata': {'HTTPStatusCode': status}},
        'GetObject'))


def test_errors_of_s3_are_one_sentence():
    from botocore.exceptions import (
        EndpointConnectionError,
        NoCredentialsError,
        ProfileNotFound,
        ReadTimeoutError,
    )

    for error, sentence in (
            (client_error('AccessDenied', 403), 'access is denied; run `aws configure`'),
            (client_error('InvalidAccessKeyId', 403), 'access is denied; run `aws configure`'),
            (client_error('SlowDown', 503), 'check the network'),
            (client_error('InvalidBucketName', 400), 'refused a request'),
            (EndpointConnectionError(endpoint_url='http://x'), 'did not answer'),
            (ReadTimeoutError(endpoint_url='http://x'), 'did not answer'),
            (ProfileNotFound(profile='me'), 'no request could be made (ProfileNotFound: The'),
            (NoCredentialsError(), 'no valid credentials; run `aws configure`')):
        wrapped = RuntimeError('while reading')
        wrapped.__cause__ = error
        assert sentence in storage.problem(error) and sentence in storage.problem(wrapped)


def test_denied_access_to_a_shard_is_told_from_a_cache_that_cannot_be_written(
        path, tmp_path, monkeypatch):
    source, files = Shards(path, 'train', tmp_path, ENOUGH), storage.file_system(path)
    for error, sentence in ((client_error('AccessDenied', 403), 'cannot be read: access is denied'),
                            (client_error('SlowDown', 503), 'cannot be read: the storage service'),
                            (OSError(28, 'No space left'), 'cannot be written to: No space left')):
        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(files, 'get_file', fail)
        with pytest.raises(UserError, match=sentence):
            source[0]


def test_a_list_of_classes_may_lie_in_s3(path):
    storage.file_system(path).pipe_file('images/classes.txt', b'cat\ndog\n')
    assert folder.read_class_list('s3://images/classes.txt') == ['cat', 'dog']
    with pytest.raises(UserError, match=r'class_list names s3://images/x, which cannot be'):
        folder.read_class_list('s3://images/x')
    with pytest.raises(UserError, match='there is no bucket s3://elsewhere'):
        folder.read_class_list('s3://elsewhere/classes.txt')


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_is_that_from_disk(path, s3, on_disk, commands, tmp_path):
    environment = s3 | {'XLA_FLAGS': xla_options.quick(devices=1)}
    args = ['resnet_jax.main', '--config=configs/digits_r20.py', '--config.model.depth=8',
            '--config.model.width=8', '--config.model.num_classes=10', '--config.batch_size=16',
            '--config.mesh.data=1', '--config.schedule.name=constant', '--config.num_steps=60',
            '--config.data.source=shards', '--config.data.image_size=8',
            '--config.data.channels=3', '--config.data.pipeline=host',
            '--config.eval.every_steps=30', '--config.eval.batch_size=35',
            '--config.checkpoint.every_steps=5', '--config.log.every_steps=5',
            f'--config.data.cache={tmp_path / "cache"}']
    straight = commands.run(*args, f'--config.data.path={on_disk}',
                            f'--workdir={tmp_path / "disk"}', env=environment)
    assert straight.status == 0, straight.errors
    args += [f'--config.data.path={path}', f'--workdir={tmp_path / "s3"}']
    run = commands.start(*args, env=environment)
    run.until(lambda: os.path.isdir(tmp_path / 's3' / 'checkpoints' / '10'))
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 143
    assert rows(tmp_path / 's3')[-1]['step'] < 60
    last = commands.run(*args, env=environment)
    assert last.status == 0 and 'resuming from step' in last.output, last.errors
    assert_same_bits(arrays(tmp_path / 's3', 60), arrays(tmp_path / 'disk', 60))
    evaluated = commands.run('resnet_jax.evaluate', f'--workdir={tmp_path / "s3"}', '--json',
                             env=environment)
    assert evaluated.status == 0, evaluated.errors
    found = json.loads(evaluated.output.splitlines()[-1])
    assert found['eval/count'] == 70
    assert rows(tmp_path / 'disk')[-1]['eval/loss'] == pytest.approx(found['eval/loss'], rel=1e-4)
    assert os.listdir(tmp_path / 'cache' / 'shards')
