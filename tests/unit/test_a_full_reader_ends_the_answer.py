"""A reader of standard output that has had enough is told apart from a mesh that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llamesh.cli import web
from llamesh.cli.failure import CommandError


class _Greets(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"hi")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Greets) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_broken_standard_output_is_not_taken_for_a_mesh_that_does_not_answer(address: str) -> None:
    with pytest.raises(BrokenPipeError), web.answer(address, "GET", "/", ""):
        raise BrokenPipeError


def test_a_connection_that_ends_within_an_answer_is(address: str) -> None:
    with pytest.raises(CommandError, match="does not answer"), web.answer(address, "GET", "/", ""):
        raise ConnectionResetError
