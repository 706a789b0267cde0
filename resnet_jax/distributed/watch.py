"""A watchdog process beside each process of a job; ends its process when another one has ended.

`processes` starts this file as a separate program next to every process. A thread would not do:
JAX's runtime aborts a process as soon as it can no longer reach process 0, before Python can print
a message, and a process that waits for another one inside a collective may never wake up.

The watchers of all other processes connect to the watcher of process 0. It learns that a process
has ended from that process's watcher, from a broken connection if the watcher has ended too, or
from 20 seconds of silence if the machine is gone. Messages are JSON objects, one per line: {} is a
heartbeat; then {"done": true} and {"ended": process, "why": sentence, "status": of the others}, in
which the sentence is empty, and no status, for a process that ended without giving a reason.

The first line of stdin describes the job, including its secret, because command-line arguments can
be read by every user of the machine.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time

HEARTBEAT_SECONDS = 2  # between two heartbeats
SILENCE_SECONDS = 20  # without a heartbeat, after which a machine is considered dead
CONNECT_SECONDS = 20  # in which the watcher of process 0 must answer
GRACE_SECONDS = 3  # for a process to report an error of its own before it is stopped
FIRST_END_SECONDS = 2  # to hear whether another process ended before one's own
WELCOME = b'\n'  # answer of the watcher of process 0 to those that know the secret
# Exit status if another process died, as if JAX had aborted this one: schedulers retry after it,
# but not after 1.
DIED = 134
STOP_SECONDS = 5  # in which a process must stop when told to
LINE_BYTES = 2**16  # of the longest message; a connection that sends a longer one is closed


class Channel:
    """Messages to and from a file: a connection, or the pipe from the process beside."""

    def __init__(self, file, process: int | None = None):
        """`process` is the number of the one at the other end, once known."""
        self.file, self.process = file, process
        self.heard = time.monotonic()
        self._rest = b''

    def read(self) -> list[dict] | None:
        """The messages that have arrived; None at the end, or if something else arrived."""
        try:
            data = os.read(self.file.fileno(), 65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b'\n')
        if len(self._rest) > LINE_BYTES:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:  # a stranger has found the port
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def send(self, message: dict) -> None:
        """Sends a message; a broken connection is noticed when reading."""
        with contextlib.suppress(OSError):
            self.file.sendall(json.dumps(message).encode() + b'\n')


class Watcher:
    """What one process knows about the others."""

    def __init__(self, process: int, hosts: list[str], token: str):
        """Args: the watched process, the host of every process, and the secret of the job."""
        self.process, self.hosts, self.token = process, hosts, token
        self.owner = Channel(sys.stdin)
        self.owner_id = os.getppid()
        self.peers: list[Channel] = []
        self.listener: socket.socket | None = None
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.owner.file, selectors.EVENT_READ, self.owner)

    def listen(self, listener: socket.socket) -> None:
        """Accepts the connections of the other processes; for process 0."""
        self.listener = listener
        self.selector.register(listener, selectors.EVENT_READ)

    def connect(self, addresses: list[str], port: int) -> bool:
        """Connects to the watcher of process 0, at the first of its addresses that answers."""
        end = time.monotonic() + CONNECT_SECONDS
        while time.monotonic() < end:
            for address in addresses:
                with contextlib.suppress(OSError):
                    connection = socket.create_connection((address, port), timeout=STOP_SECONDS)
                    peer = Channel(connection, 0)
                    peer.send({'token': self.token, 'process': self.process})
                    if connection.recv(1) == WELCOME:
                        self._add(peer)
                        return True
                    connection.close()
            time.sleep(0.5)
        return False

    def _add(self, peer: Channel) -> None:
        self.peers.append(peer)
        self.selector.register(peer.file, selectors.EVENT_READ, peer)

    def _remove(self, peer: Channel) -> None:
        self.peers.remove(peer)
        self.selector.unregister(peer.file)
        peer.file.close()

    def wait(self) -> dict | None:
        """Waits for the first end of a process; returns its message, or None if all went well."""
        beaten = 0.0
        while True:
            for message in self._messages(HEARTBEAT_SECONDS):
                if 'ended' in message:
                    return message
                if message.get('done'):
                    return None
            if time.monotonic() - beaten >= HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                self.tell({})

    def _messages(self, seconds: float):
        """The messages of the next `seconds`, including those about lost processes."""
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.listener:
                with contextlib.suppress(OSError):
                    connection, _ = self.listener.accept()
                    connection.settimeout(STOP_SECONDS)
                    self._add(Channel(connection))
            elif key.data is self.owner:
                yield from self._of_owner()
            elif key.data in self.peers:
                yield from self._of_peer(key.data)
        if os.getppid() != self.owner_id:  # a child of its own may keep the pipe open
            yield {'ended': self.process, 'why': ''}
        for peer in self.peers:
            if peer.process is not None and time.monotonic() - peer.heard > SILENCE_SECONDS:
                yield {'ended': peer.process, 'why': '', 'silent': True}

    def _of_owner(self):
        messages = self.owner.read()
        if messages is None:
            self.selector.unregister(self.owner.file)
            messages = [{'ended': self.process, 'why': ''}]
        for message in messages:
            if message.get('done'):
                self.tell(message)
            yield message

    def _of_peer(self, peer: Channel):
        messages = peer.read()
        if messages is None:
            if peer.process is not None:
                yield {'ended': peer.process, 'why': ''}
            self._remove(peer)
            return
        for message in messages:
            if peer.process is None:  # the first message says who it is
                if message.get('token') != self.token:
                    self._remove(peer)
                    return
                peer.process = message['process']
                peer.file.sendall(WELCOME)
            elif message.get('done') and self.process == 0:
                self._remove(peer)  # the others are still watched over
                return
            else:
                yield message

    def tell(self, message: dict) -> None:
        """Sends a message to all others."""
        for peer in self.peers:
            if peer.process is not None:
                peer.send(message)

    def first(self, message: dict) -> dict:
        """The end that came first, if one's own process has ended without giving a reason.

        Runtimes abort a process when another one is gone.
        """
        end = time.monotonic() + FIRST_END_SECONDS
        while message['ended'] == self.process != 0 and time.monotonic() < end:
            for other in self._messages(0.1):
                if other.get('ended', self.process) != self.process:
                    return other
        return message

    def has_ended_by_itself(self) -> bool:
        """Gives the watched process time to report an error itself; returns whether it did."""
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            for message in self._messages(0.1):
                if message.get('ended') == self.process:
                    return bool(message['why'])
        return False

    def see_off(self) -> None:
        """Lets all others end first: without process 0, JAX would abort them noisily."""
        end = time.monotonic() + STOP_SECONDS
        while self.process == 0 and self.peers and time.monotonic() < end:
            for _ in self._messages(0.1):
                pass

    def stop(self, status: int) -> None:
        """Tells the watched process to exit with this status, and kills it if it does not."""
        with contextlib.suppress(OSError):
            print(status, flush=True)
        end = time.monotonic() + STOP_SECONDS
        while os.getppid() == self.owner_id:
            if time.monotonic() > end:
                os.kill(self.owner_id, signal.SIGKILL)
                return
            time.sleep(0.05)


def sentence(message: dict, hosts: list[str]) -> str:
    """The error message about the end of a process."""
    number = message['ended']
    name = f'process {number} on {hosts[number]}'
    if message['why']:
        return f'{name} stopped: {message["why"]}'
    end = f'no heartbeat from {name} for {SILENCE_SECONDS} s' if message.get('silent') else (
        f'{name} died')
    return f'{end}; stopping. Restart all processes to resume.'


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # meant for the watched process
        signal.signal(number, signal.SIG_IGN)
    with open(sys.stdin.fileno(), 'rb', buffering=0, closefd=False) as unbuffered:
        job = json.loads(unbuffered.readline())  # and nothing that follows
    watcher = Watcher(job['process'], job['hosts'], job['token'])
    if job['listener'] is not None:
        watcher.listen(socket.socket(fileno=job['listener']))
    elif not watcher.connect(job['addresses'], job['port']):
        print(f'warning: process {job["process"]} cannot reach port {job["port"]} of process 0 on '
              f'{job["hosts"][0]}; if a process dies, only JAX will notice, a minute later.',
              file=sys.stderr, flush=True)
        return
    message = watcher.wait()
    if message is None:
        return
    if not message['why']:
        message = watcher.first(message)
    watcher.tell(message)
    ended_by_itself = message['ended'] == watcher.process or (
        message['why'] and watcher.has_ended_by_itself())
    if not ended_by_itself:
        print(f'error: {sentence(message, watcher.hosts)}', file=sys.stderr, flush=True)
    watcher.see_off()
    if not ended_by_itself:
        watcher.stop(message.get('status', DIED))


if __name__ == '__main__':
    main()
