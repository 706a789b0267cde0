"""A bucket of Google Cloud Storage on this machine, which can be made to fail.

The package `gcp-storage-emulator` keeps the objects. What it lacks is added here: the generation of
an object in the answers to reads, which tensorstore needs, and uploads on condition of none.
"""

import contextlib
import functools
import http.server
import io
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

from resnet_jax import storage

BUCKET = 'runs'
logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)


class Bucket:
    """The server of one bucket, on loopback.

    Attributes:
      variables: of the environment, for the processes that use it.
      requests: all requests so far, 'METHOD path'.
      fault: called with each request; what it returns is done instead of answering: the status of
        an error, or 'reset' to cut the connection; None: nothing.
    """

    def __init__(self):
        self.requests: list[str] = []
        self.fault: Callable[[str], int | str | None] = lambda request: None
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        self._server = _Server(('127.0.0.1', 0), functools.partial(_Handler, self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{self._server.server_address[1]}'
        self.variables = {
            'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url, 'NO_GCE_CHECK': 'true'}

    def names(self) -> list[str]:
        """The names of all objects."""
        return sorted(self.storage.objects.get(BUCKET, {}))

    def put(self, name: str, content: bytes) -> None:
        """Writes an object."""
        storage.file_system('gs://').pipe_file(f'{BUCKET}/{name}', content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """A bucket, `gs://runs`, that this process and those started with its variables see."""
    bucket = Bucket()
    before = {name: os.environ.get(name) for name in bucket.variables}
    os.environ.update(bucket.variables)
    try:
        yield bucket
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        bucket.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients may be killed."""


class _Handler(server.RequestHandler):
    lock = threading.Lock()  # the emulator is meant for one request at a time

    def __init__(self, bucket: Bucket, *args):
        self._bucket = bucket
        super().__init__(bucket.storage, *args)

    def _answer(self) -> None:
        request = f'{self.command} {self.path}'
        self._bucket.requests.append(request)
        fault = self._bucket.fault(request)
        length = int(self.headers.get('Content-Length', 0))
        content = self.rfile.read(length)
        if len(content) < length:  # whoever sent it was killed
            return
        self.rfile = io.BytesIO(content)
        if fault == 'reset':
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault:
            self.send_error(fault)
        elif 'ifGenerationMatch=0' in self.path and self._exists():
            self.send_error(412)
        else:
            with self.lock:
                server.Router(self).handle(self.command)

    def _object(self):
        parsed = server.urlparse(self.path)
        name = server.parse_qs(parsed.query).get('name', [''])[0]
        if not name and '/o/' in parsed.path:
            name = server.unquote(parsed.path.partition('/o/')[2])
        return self.storage.get_file_obj(BUCKET, name)

    def _exists(self) -> bool:
        with contextlib.suppress(NotFound):
            return bool(self._object())
        return False

    def end_headers(self):
        if self.command == 'GET' and 'alt=media' in self.path:
            with contextlib.suppress(NotFound):
                self.send_header('x-goog-generation', self._object()['generation'])
        super().end_headers()


for method in ('GET', 'POST', 'PUT', 'DELETE', 'PATCH'):
    setattr(_Handler, f'do_{method}', _Handler._answer)
