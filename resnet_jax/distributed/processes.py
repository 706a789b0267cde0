"""Multi-process jobs: discovery, consistency checks and coordinated shutdown."""

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.distributed import watch
from resnet_jax.errors import UserError

START_SECONDS = 300  # in which all processes must connect
# Without a heartbeat, after which JAX itself considers a process dead and aborts the others. The
# watchers notice most ends within a second, and all within watch.SILENCE_SECONDS.
HEARTBEAT_SECONDS = 50
SHUTDOWN_SECONDS = 60  # that a process waits for the others when it ends
IDENTITY_BYTES = 2048
CALL = r'resnet_jax (\d+) of (\d+)\n'  # sent by every process to process 0 at the start
GO = 'go'


@contextlib.contextmanager
def job(coordinator: str | None = None, num_processes: int | None = None,
        process_id: int | None = None, *, ends_on_sigterm: bool = False) -> Iterator[None]:
    """Runs its body as one of the processes of a job, or alone.

    The processes end together: if the body raises an error or the process dies, all others stop
    within a minute with an error that names it; see `resnet_jax.distributed.watch`.
    `jax.distributed.initialize` finds them automatically under SLURM and Open MPI, and on Cloud TPU
    even if there is only one.

    Args:
      coordinator: address and port of process 0; None: by the environment.
      num_processes: in the job; with a coordinator.
      process_id: of this process, from 0; with a coordinator.
      ends_on_sigterm: whether SIGTERM to one process ends all of them at once, with status 143; by
        default it is left to JAX, which only notes it, for a body that asks.

    Raises:
      UserError: some of the three are missing or wrong, or not all processes connected in time.
    """
    if not _start(coordinator, num_processes, process_id):
        yield
        return
    if jax.process_count() == 1:
        if ends_on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # in place of JAX's handler
        yield
        return
    beside = _Watch(coordinator)
    if ends_on_sigterm:
        _end_on_sigterm(beside)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        time.sleep(_doubt(error))
        if isinstance(error, UserError):
            print(f'error: {error}', file=sys.stderr, flush=True)
            beside.tell_end(str(error))
        else:
            traceback.print_exception(error)
            beside.tell_end(f'{type(error).__name__}: {error}')
        os._exit(1)  # leaving jax in the usual way would wait for the others
    jax.distributed.shutdown()  # waits for the others, still watched over
    beside.tell({'done': True})
    if ends_on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


def _start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Starts `jax.distributed` if the flags or the environment describe several processes."""
    flags = (coordinator, num_processes, process_id)
    if any(value is not None for value in flags):
        if None in flags:
            raise UserError('--coordinator, --num_processes and --process_id must be given '
                            'together.')
        _meet(coordinator, num_processes, process_id)
    elif not _environment_tells():
        return False

    def give_up():
        print(f'error: not all processes of the job connected within {START_SECONDS} s; start all '
              'of them at once, on machines that can reach each other.', file=sys.stderr,
              flush=True)
        os._exit(1)

    timer = threading.Timer(START_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        # Past its own limit jax aborts with a stack trace.
        jax.distributed.initialize(
            *flags, initialization_timeout=START_SECONDS + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f'the environment does not describe the job ({" ".join(str(error).split())}); pass '
            '--coordinator, --num_processes and --process_id.') from error
    finally:
        timer.cancel()
    return True


def _environment_tells() -> bool:
    on_tpu = importlib.util.find_spec('libtpu') and (glob.glob('/dev/accel*')
                                                     or glob.glob('/dev/vfio/[0-9]*'))
    return bool(on_tpu or int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1
                or int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1)


def _meet(coordinator: str, num_processes: int, process_id: int) -> None:
    """Waits until all processes have connected to the coordinator's address, which JAX then uses.

    JAX would abort if one were missing, without naming it.

    Raises:
      UserError: the flags are wrong, or a process is missing.
    """
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f'--coordinator must be an address and a port, such as 10.0.0.1:1234, got '
                        f'{coordinator}.')
    if not 0 <= process_id < num_processes:
        raise UserError(f'--process_id must be from 0 to --num_processes - 1, got {process_id} '
                        f'with --num_processes={num_processes}.')
    end = time.monotonic() + START_SECONDS
    if process_id == 0:
        problem = _receive(coordinator, int(port), num_processes, end)
    else:
        problem = _call(coordinator, (host.strip('[]'), int(port)), num_processes, process_id, end)
    if problem:
        raise UserError(problem)


def _receive(coordinator: str, port: int, num_processes: int, end: float) -> str:
    """Waits for the calls of all other processes; returns '', or what is wrong."""
    try:
        server = _listen(port)
    except OSError as error:
        return (f'--coordinator={coordinator}: process 0 cannot open the port ({error.strerror}); '
                'choose another one, for all processes.')
    with server, contextlib.ExitStack() as callers:
        connections, numbers, problem = [], set(), ''
        while len(numbers) < num_processes - 1 and not problem:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection = callers.enter_context(server.accept()[0])
                connection.settimeout(watch.STOP_SECONDS)
                call = re.fullmatch(CALL, connection.recv(100).decode(errors='replace'))
            except OSError:
                call = None
            if call:
                number, count = map(int, call.groups())
                if count != num_processes:
                    problem = (f'process {number} was started with --num_processes={count}, but '
                               f'process 0 with --num_processes={num_processes}.')
                elif number in numbers:
                    problem = f'two processes were started with --process_id={number}.'
                connections.append(connection)
                numbers.add(number)
            elif time.monotonic() > end:
                missing = sorted(set(range(1, num_processes)) - numbers)
                problem = (f'processes {", ".join(map(str, missing))} (of {num_processes}) did '
                           f'not connect to {coordinator} within {START_SECONDS} s.')
        server.close()  # JAX opens the port next
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall((problem or GO).encode())
    return problem


def _call(coordinator: str, address: tuple[str, int], num_processes: int, process_id: int,
          end: float) -> str:
    """Calls process 0 until it answers that all have called; returns '', or what is wrong."""
    reason = 'no answer'
    while time.monotonic() < end:
        try:
            with socket.create_connection(address, timeout=watch.STOP_SECONDS) as connection:
                connection.sendall(f'resnet_jax {process_id} of {num_processes}\n'.encode())
                connection.settimeout(max(1, end - time.monotonic() + watch.STOP_SECONDS))
                answer = connection.recv(1000).decode(errors='replace')
            if answer:
                return '' if answer == GO else answer
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.5)
    return (f'process {process_id} could not connect to process 0 at {coordinator} within '
            f'{START_SECONDS} s ({reason}); check that process 0 is running and its port is open.')


def _listen(port: int) -> socket.socket:
    """Listens on all addresses of this machine; port 0 is any free port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(('', port))


def check_alike(facts: Mapping[str, str]) -> None:
    """Checks that all processes of the job agree; all of them must call this.

    Args:
      facts: what they must agree on, by name.

    Raises:
      UserError: a process differs from process 0.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(fact.encode()).digest()[:8] for fact in facts.values()]
    gathered = multihost_utils.process_allgather(np.frombuffer(b''.join(digests), np.uint8))
    for process, row in enumerate(gathered.reshape(len(gathered), len(facts), -1)):
        for name, own, first in zip(facts, row, gathered[0].reshape(len(facts), -1), strict=True):
            if (own != first).any():
                article = '' if name.endswith('data') else 'a '
                raise UserError(f'process {process} was started with {article}different {name} '
                                'than process 0.')


def check_shared(folder: pathlib.Path) -> None:
    """Checks that all processes see the same folder; all of them must call this.

    Raises:
      UserError: a process sees another folder.
    """
    if jax.process_count() == 1:
        return
    name = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(8), np.uint8))
    path = folder / f'.shared-{bytes(name).hex()}'
    if jax.process_index() == 0:
        path.touch()
    multihost_utils.sync_global_devices('written')
    seen = multihost_utils.process_allgather(np.array(path.exists()))
    if jax.process_index() == 0:
        path.unlink()
    if not seen.all():
        raise UserError(f'process {seen.argmin()} does not see what process 0 writes to {folder}: '
                        '--workdir must be on a file system that all processes share.')


def _doubt(error: BaseException) -> int:
    """Seconds to wait for a watcher to report that another process's end caused an error.

    When a process ends, collectives fail in the others with errors of several types. When its
    machine is gone, it takes a while to distinguish it from a slow one.
    """
    if isinstance(error, UserError) and error.__context__ is None:
        return 0
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return watch.SILENCE_SECONDS + watch.STOP_SECONDS
        error = error.__cause__ or error.__context__
    return watch.STOP_SECONDS


def _end_on_sigterm(beside: '_Watch') -> None:
    """Makes SIGTERM end all processes, even while this one waits in a collective."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait():
        while os.read(reading, 1)[0] != signal.SIGTERM:
            pass  # another signal that Python handles
        print('stopped by SIGTERM before the end.', file=sys.stderr, flush=True)
        beside.tell_end('it got SIGTERM.', 128 + signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    # The handler runs only between two instructions of Python; the pipe is written to at once.
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGTERM, lambda number, frame: None)


class _Watch:
    """The watcher beside this process; see `resnet_jax.distributed.watch`."""

    def __init__(self, coordinator: str | None):
        """Starts it, and connects it to those of the other processes."""
        listener = _listen(0) if jax.process_index() == 0 else None
        identity = {'host': socket.gethostname()}
        if listener:
            identity |= {'addresses': _own_addresses(coordinator), 'token': secrets.token_hex(16),
                         'port': listener.getsockname()[1]}
        packed = np.frombuffer(json.dumps(identity).encode().ljust(IDENTITY_BYTES), np.uint8)
        identities = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(packed)]
        told = identities[0] | {
            'process': jax.process_index(), 'hosts': [other['host'] for other in identities],
            'listener': listener.fileno() if listener else None}
        # In a session of its own, so that Ctrl-C in a terminal does not reach it.
        self._program = subprocess.Popen(
            [sys.executable, '-I', '-S', watch.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            pass_fds=[listener.fileno()] if listener else [])
        self.tell(told)  # through stdin, since every user can read arguments
        if listener:
            listener.close()
        threading.Thread(target=self._obey, daemon=True).start()

    def _obey(self) -> None:
        order = self._program.stdout.readline()
        if order:
            os._exit(int(order))

    def tell(self, message: dict) -> None:
        """Sends it a message about this process."""
        with contextlib.suppress(OSError):
            self._program.stdin.write(json.dumps(message).encode() + b'\n')
            self._program.stdin.flush()

    def tell_end(self, why: str, status: int = 1) -> None:
        """Reports that this process is about to end all; waits until all know.

        Args:
          why: what is wrong.
          status: exit status of the others.
        """
        self.tell({'ended': jax.process_index(), 'why': ' '.join(why.split())[:1000],
                   'status': status})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._program.wait(2 * watch.STOP_SECONDS)


def _own_addresses(coordinator: str | None) -> list[str]:
    """Addresses at which the other processes may reach this machine."""
    addresses = [coordinator.rpartition(':')[0].strip('[]')] if coordinator else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(('192.0.2.1', 9))  # sends nothing; finds the interface that leads outside
        addresses.append(probe.getsockname()[0])
    return [*addresses, socket.gethostname(), socket.getfqdn()]


def of_first_process(value: Any) -> Any:
    """The value that process 0 has, in all processes; all of them must call this.

    Args:
      value: of JSON types; ignored in all processes but process 0.
    """
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text[:size].ljust(size), np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))
