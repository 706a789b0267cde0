"""The watchers beside the processes of a job: whom they listen to, and what they say."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from resnet_jax.distributed import processes, watch

ROOT = pathlib.Path(__file__).parents[2]
WATCHER = '''
import sys
from resnet_jax.distributed import watch
watch.HEARTBEAT_SECONDS, watch.SILENCE_SECONDS = 0.1, 2
connect = watch.Watcher.connect
watch.Watcher.connect = lambda *args: connect(*args) and not print('connected', file=sys.stderr)
watch.main()
'''
OWNER = f'''
import json, subprocess, sys
listener = json.loads(sys.argv[1])['listener']
watcher = subprocess.Popen(
    [sys.executable, '-uc', {WATCHER!r}], stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, pass_fds=[listener] if listener else [])
watcher.stdin.write(sys.argv[1].encode() + b'\\n')
watcher.stdin.flush()
print(watcher.pid, flush=True)
sys.exit(int(watcher.stdout.readline()))
'''


def test_a_machine_that_is_no_longer_heard_of_is_named():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        told = {'hosts': ['here', 'there'], 'token': 'x', 'addresses': ['127.0.0.1'],
                'port': listener.getsockname()[1]}
        owners = [subprocess.Popen(
            [sys.executable, '-c', OWNER, json.dumps(told | {
                'process': i, 'listener': None if i else listener.fileno()})],
            cwd=ROOT, pass_fds=[listener.fileno()], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE) for i in range(2)]
    watcher = int(owners[0].stdout.readline())
    try:
        assert owners[1].stderr.readline() == 'connected\n'
        os.kill(watcher, signal.SIGSTOP)  # as if its machine stood still
        assert owners[1].wait(60) == 134
        assert owners[1].stderr.read() == (
            'error: no heartbeat from process 0 on here for 2 s; stopping. Restart all processes '
            'to resume.\n')
    finally:
        os.kill(watcher, signal.SIGKILL)
        owners[0].kill()


@pytest.fixture
def watcher_of_process_0(monkeypatch):
    """The watcher that a process 0 of two starts, its own arguments, and what it was told."""
    told = {}

    def gather(packed):
        told.update(json.loads(bytes(packed)))
        other = json.dumps({'host': 'there'}).encode().ljust(processes.IDENTITY_BYTES)
        return np.stack([packed, np.frombuffer(other, np.uint8)])

    monkeypatch.setattr(processes.multihost_utils, 'process_allgather', gather)
    beside = processes._Watch('127.0.0.1:1')
    yield beside._program, told
    beside.tell({'done': True})
    assert beside._program.wait(60) == 0


def connection(told, data):
    peer = socket.create_connection(('127.0.0.1', told['port']), timeout=60)
    peer.sendall(data)
    return peer


def test_the_secret_of_a_job_is_in_no_arguments_but_known_to_the_watcher(watcher_of_process_0):
    program, told = watcher_of_process_0
    assert len(told['token']) == 32 and not any(told['token'] in text for text in program.args)
    listing = pathlib.Path(f'/proc/{program.pid}/cmdline')
    if listing.exists():
        assert told['token'].encode() not in listing.read_bytes()
    for token, answer in ((told['token'], watch.WELCOME), ('guessed', b'')):
        hello = json.dumps({'token': token, 'process': 1}).encode() + b'\n'
        with connection(told, hello) as peer:
            assert peer.recv(1) == answer
            if answer:
                peer.sendall(b'{"done": true}\n')


def test_a_peer_that_sends_no_newline_is_dropped_after_64_kib(watcher_of_process_0):
    _, told = watcher_of_process_0
    with connection(told, b'x' * watch.LINE_BYTES) as peer:
        peer.settimeout(1)
        with pytest.raises(TimeoutError):
            peer.recv(1)  # it may still become a message
        peer.settimeout(60)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 2**30:
                sent += peer.send(b'x' * 2**16)
        assert sent < 2**24  # what lay in the buffers of the system
