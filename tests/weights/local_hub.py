"""A server on loopback that speaks the protocol of the Hugging Face hub."""

import contextlib
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator

_FILE = re.compile(r'/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)')


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each {'commit': …, 'files': {name: bytes}}.

    Attributes:
      requests: (method, path) of all that came.
      cut: bytes of a large file after which the connection is closed; None: never.
      declared: the size that it says a large file has; None: the right one.
      damaged: whether one bit of large files is wrong.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repositories, self.requests = {}, []
        self.cut = self.declared = None
        self.damaged = False

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def add(self, repo: str, commit: str, **files: bytes) -> None:
        """Puts a repository there; config_json and model_safetensors name files."""
        names = {'config_json': 'config.json', 'model_safetensors': 'model.safetensors',
                 'preprocessor_config_json': 'preprocessor_config.json',
                 'pytorch_model_bin': 'pytorch_model.bin'}
        self.repositories[repo] = commit, {names[name]: data for name, data in files.items()}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_content=False)

    def do_GET(self):
        self._answer(with_content=True)

    def _refuse(self, status, code, commit=None):
        self.send_response(status)
        self.send_header('X-Error-Code', code)
        if commit:
            self.send_header('X-Repo-Commit', commit)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def _answer(self, with_content):
        hub = self.server
        hub.requests.append((self.command, self.path))
        asked = _FILE.fullmatch(self.path)
        if not asked or asked['repo'] not in hub.repositories:
            return self._refuse(404, 'RepoNotFound')
        commit, files = hub.repositories[asked['repo']]
        if asked['revision'] not in ('main', commit):
            return self._refuse(404, 'RevisionNotFound')
        if asked['file'] not in files:
            return self._refuse(404, 'EntryNotFound', commit)
        data = files[asked['file']]
        is_large = asked['file'].endswith('.safetensors')
        hashed = hashlib.sha256 if is_large else hashlib.sha1
        start, size = 0, len(data)
        if is_large and hub.declared:
            size = hub.declared
        if is_large and hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if wanted:
            start = int(wanted[1])
        body = data[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('ETag', f'"{hashed(files[asked["file"]]).hexdigest()}"')
        self.send_header('X-Repo-Commit', commit)
        self.send_header('X-Linked-Size', str(size))
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(len(body) if with_content else size))
        self.end_headers()
        if with_content:
            if is_large and hub.cut is not None:
                body = body[:max(hub.cut - start, 0)]
                self.close_connection = True
            self.wfile.write(body)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs as long as the context."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
