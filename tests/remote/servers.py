"""Real servers on this machine: one of S3, one of plain files, and a proxy that spoils some answers."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

BUCKET = "bucket"


class WebServer(ThreadingHTTPServer):
    """Files of a folder, without ranges and ETags.

    Attributes:
        requests: method and path of each.
        cut: so many answers to GET end in the middle.
        status: of further answers instead of files.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.requests: list[tuple[str, str]] = []
        self.cut, self.status = 0, 0
        super().__init__(("127.0.0.1", 0), partial(_FileHandler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def num(self, method: str) -> int:
        return sum(one == method for one, _ in self.requests)


class _FileHandler(SimpleHTTPRequestHandler):
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.requests.append((self.command, self.path))
        if self.server.status:
            self.send_error(self.server.status)
        elif self.command == "GET" and self.server.cut:
            self.server.cut -= 1
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif self.command == "GET":
            super().do_GET()
        else:
            super().do_HEAD()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, but every so often refuses one, or breaks off its answer.

    Attributes:
        count: requests.
        spoiled: among them.
    """

    daemon_threads = True

    def __init__(self, port: int, every: int) -> None:
        self.port, self.every = port, every
        self.count = self.spoiled = 0
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _pass_on(self) -> None:
        self.server.count += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        spoil = self.server.count % self.server.every == 0
        self.server.spoiled += spoil
        if spoil and self.server.spoiled % 2:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        announced = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", announced or "0")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if spoil else data)
        self.close_connection = spoil

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[Any]:
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
