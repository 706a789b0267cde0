"""The folder of a run: one run at a time, of one config, on a disk that may fail."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import types

import pytest

from resnet_jax import data
from resnet_jax.errors import UserError
from resnet_jax.training import disk, loop, workdir, writers
from resnet_jax.training.writers import parse_rows
from tests import tiny
from tests.training.test_main import ONE_DEVICE, RUN
from tests.training.test_train import arrays, assert_same_bits, finished, rows  # noqa: F401


@pytest.mark.slow
def test_train_runs_in_a_thread_and_leaves_the_same_bits(finished, tmp_path):  # noqa: F811
    ends = []
    thread = threading.Thread(target=lambda: ends.append(loop.train(tiny.config(), tmp_path)))
    thread.start()
    thread.join()
    assert ends[0]['eval/count'] == 297
    assert_same_bits(arrays(tmp_path, 20), arrays(finished, 20))


def test_writes_that_end_after_the_one_that_failed_print_nothing(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda late: printed.append(str(late.exc_value)))
    with pytest.raises(UserError, match='cannot be written to'), disk.errors_of(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for message in ('Event loop is closed', 'another'):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))
    assert printed == ['another']


def test_a_folder_in_use_is_refused_in_one_sentence_and_left_alone(tmp_path):
    with workdir.locked(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError) as refused:
            loop.train(tiny.config(), tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    assert str(refused.value) == (
        f'{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}; wait for it, or '
        'use another --workdir.')
    with workdir.locked(tmp_path):  # as soon as the other one has ended
        pass


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with workdir.locked(tmp_path):
        pass


def test_a_system_without_fcntl_is_used_without(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, 'fcntl', None)
    with workdir.locked(tmp_path), workdir.locked(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_run_of_another_config_is_refused_before_the_data_is_opened(
        finished, monkeypatch):  # noqa: F811
    def opened(*_):
        raise AssertionError('the data was opened')

    monkeypatch.setattr(data, 'create_source', opened)
    config = tiny.config()
    config.optimizer.momentum = 0.8
    with pytest.raises(UserError, match=r'was trained with a different config .*momentum: 0.9 ->'):
        loop.train(config, finished)


@pytest.mark.parametrize(('name', 'content'), [
    ('config.json', None), ('config.json', '[]'), ('config.json', '{'), ('data.json', None),
    ('data.json', '{}'), ('data.json', 'null'), ('data.json', b'\xff')])
def test_checkpoints_of_unknown_origin_are_refused(
        finished, tmp_path, name, content):  # noqa: F811
    for part in ('config.json', 'data.json', 'checkpoints'):
        (tmp_path / part).symlink_to(finished / part)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f'{name}.*use another --workdir'):
        loop.train(tiny.config(), tmp_path)


def test_lost_and_damaged_rows_decide_nothing_and_are_counted(
        finished, tmp_path, capsys):  # noqa: F811
    shutil.copytree(finished, tmp_path / 'run')
    log = tmp_path / 'run' / 'metrics.jsonl'
    lines = log.read_bytes().splitlines()
    log.write_bytes(b'\n'.join([b'[]', b'\xff\xfe', lines[0], b'{"step": 3', lines[3], b'{"st']))
    values = loop.train(tiny.config(), tmp_path / 'run')
    assert 'warning: 3 lines of' in capsys.readouterr().err
    expected = rows(finished)
    assert values == {tag: value for tag, value in expected[-1].items() if tag != 'step'}
    # The evaluations are back, from the checkpoints; rows of training are gone with their lines.
    kept = [0, *([2] if (finished / 'checkpoints' / '10').is_dir() else []), 3, 5]
    assert rows(tmp_path / 'run') == [expected[i] for i in kept]
    assert parse_rows(log)[1] == 0


def test_the_log_is_read_once_when_a_run_resumes(finished, tmp_path, monkeypatch):  # noqa: F811
    read = []
    monkeypatch.setattr(
        writers, 'parse_rows', lambda path: read.append(path.name) or parse_rows(path))
    loop.train(tiny.config(), shutil.copytree(finished, tmp_path / 'run'))
    assert read == ['metrics.jsonl']


def test_the_best_checkpoint_is_kept_whose_evaluation_is_only_in_the_log(
        finished, tmp_path):  # noqa: F811
    run = shutil.copytree(finished, tmp_path / 'run')
    checkpoints = run / 'checkpoints'
    shutil.rmtree(checkpoints / '10', ignore_errors=True)
    shutil.copytree(checkpoints / '20', checkpoints / '10')
    for path in checkpoints.glob('*/evaluation.json'):  # as before they were stored there
        path.unlink()
    log = rows(run)
    log[2]['eval/top1_error'] = 1.0
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in log))
    config = tiny.config()
    config.num_steps = 25
    loop.train(config, run)
    assert sorted(path.name for path in checkpoints.iterdir()) == ['10', '20', '25']


@pytest.mark.slow
def test_the_terminal_has_a_line_after_the_first_step_and_every_few_seconds(
        tmp_path, monkeypatch, capsys):
    config = tiny.config()
    config.num_steps, config.log.every_steps = 6, 5
    config.eval.every_steps = config.checkpoint.every_steps = None
    monkeypatch.setattr(loop, 'PROGRESS_SECONDS', 0)
    loop.train(config, tmp_path / 'often')
    monkeypatch.setattr(loop, 'PROGRESS_SECONDS', 1e9)
    loop.train(config, tmp_path / 'seldom')
    said = [int(step) for step in re.findall(r'^step +(\d+)/6', capsys.readouterr().out, re.M)]
    assert said == [1, 2, 3, 4, 5, 6, 1, 5, 6]
    logs = [{row['step']: row['train/loss'] for row in rows(tmp_path / name) if 'train/loss' in row}
            for name in ('often', 'seldom')]
    assert logs[0] == logs[1] and list(logs[0]) == [5, 6]


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of 2 MiB."""
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no file system can be mounted here: {done.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_or_is_read_only_ends_the_command_with_one_sentence(
        tmp_path, commands):
    def command(folder, steps):
        """Exit status, lines of stdout and of stderr."""
        process = commands.run(
            'resnet_jax.main', *RUN, f'--workdir={folder}', f'--config.num_steps={steps}',
            '--config.checkpoint.every_steps=5', '--config.checkpoint.keep_last=1000',
            env=ONE_DEVICE)
        return process.status, process.output.splitlines(), process.errors.splitlines()

    folder = tmp_path / 'small'
    with mounted(folder, 'size=2m'):
        status, _, errors = command(folder / 'run', 1000)
        assert status == 1 and len(errors) <= 5
        sentence = re.fullmatch(
            r'error: .*/run cannot be written to: No space left on device\. Nothing up to step '
            r'(\d+) is lost\. Make space, and run the same command again to resume\.', errors[-1])
        last = int(sentence[1])
        for step in range(5, last, 5):  # room for the end
            shutil.rmtree(folder / 'run' / 'checkpoints' / str(step))
        status, said, _ = command(folder / 'run', last + 5)
        assert status == 0
        assert any(line.startswith(f'resuming from step {last} ') for line in said)
        subprocess.run(['mount', '-o', 'remount,ro', folder], check=True)
        status, _, errors = command(folder / 'run', last + 10)
        assert status == 1 and len(errors) <= 5
        assert errors[-1].startswith(f'error: {folder}/run cannot be written to: Read-only')
        assert f'Nothing up to step {last + 5} is lost. Make it writable' in errors[-1]
