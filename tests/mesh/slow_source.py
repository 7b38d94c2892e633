"""A web server of model files that sends the second half of each slowly until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.contract.model_source import model_bytes

PIECE = 4096
PAUSE = 0.15
"""Seconds between two pieces."""


class SlowSource:
    """Serves any path ending with .gguf: a valid model of its own of 8 MiB. Each takes 150 s, longer than a test, unless `go_on` is set."""

    def __init__(self) -> None:
        self.host = ""
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def url(self, name: str) -> str:
        return f"http://{self.host}/{name}"

    def content(self, name: str) -> bytes:
        """The file of that name."""
        return model_bytes(name, 8 * 2**20)

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path[1:]
        self.asked.append(name)
        content = self.content(name)
        handler.send_response(200)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2
        handler.wfile.write(content[:half])
        for start in range(half, len(content), PIECE):
            self.go_on.wait(PAUSE)
            handler.wfile.write(content[start : start + PIECE])


@contextmanager
def slow_source() -> Iterator[SlowSource]:
    """A running server on a free port of loopback."""
    source = SlowSource()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                source.send(self)
            except OSError:  # the reader has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    source.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield source
    finally:
        source.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
