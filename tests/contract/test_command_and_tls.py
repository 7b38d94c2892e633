"""A wrong scheme, and a certificate of an unknown authority, are named as such: by calls over gRPC and by REST calls."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from controller.xds import tls
from llamesh.cli.connection import NEEDS_TLS, encrypted, untrusted
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from tests.contract.fakes import FakeGateway
from tests.contract.test_tls_for_clients import server
from tests.ports import free_ports

Capture = pytest.CaptureFixture[str]


class _PortWithTls(BaseHTTPRequestHandler):
    """Answers plain HTTP as Envoy does at a port with TLS."""

    def do_GET(self) -> None:
        self.send_response(308)
        self.send_header("location", f"https://{self.headers['host']}{self.path}")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps(tls._STATUS).encode()
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def port_with_tls() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _PortWithTls) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def other_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server whose authority this user does not trust."""
    monkeypatch.setenv("LLAMESH_HOME", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with server(tmp_path / "other") as url:
        # One address only: gRPC names the last one that failed, and the server listens at one of localhost's two.
        yield url.replace("localhost", "127.0.0.1")


def test_the_words_are_those_of_the_port() -> None:
    assert tls.WORDS.startswith(NEEDS_TLS)


@pytest.mark.parametrize("answer", [tls._STATUS, tls._OPENAI], ids=["management", "inference"])
def test_a_call_in_clear_to_a_port_with_tls_is_told_the_address(
    answer: dict[str, object], gateway: FakeGateway, url: str, capsys: Capture
) -> None:
    gateway.refusal = (grpc.StatusCode.INTERNAL, "", json.dumps(answer))
    assert run(["status"]) == Exit.USAGE
    right = url.replace("http", "https")
    assert capsys.readouterr().err == f"error: {url} speaks TLS\nhint: use {right}\n"


@pytest.mark.parametrize("arguments", [["api", "GET", "/status"], ["api", "POST", "/serve", "-d", "{}"]], ids=" ".join)
def test_a_rest_call_in_clear_is_told_the_address(
    arguments: list[str], port_with_tls: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_URL", port_with_tls)
    assert run(arguments) == Exit.USAGE
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        "",
        f"error: http://{port_with_tls} speaks TLS\nhint: use https://{port_with_tls}\n",
    )


@pytest.mark.parametrize(
    "arguments", [["login", "ada", "--password-stdin"], ["status"], ["api", "GET", "/status"]], ids=" ".join
)
def test_a_tls_address_of_a_port_in_clear_is_told_the_address(
    arguments: list[str], url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    clear = url.replace("localhost", "127.0.0.1")
    secure = clear.replace("http", "https")
    monkeypatch.setenv("LLAMESH_URL", secure)
    assert run(arguments) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"error: {secure} does not speak TLS\nhint: use {clear}, or")


@pytest.mark.parametrize(
    "arguments", [["login", "ada", "--password-stdin"], ["status"], ["api", "GET", "/status"]], ids=" ".join
)
def test_no_mesh_is_started_here_in_place_of_one_elsewhere(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    monkeypatch.setenv("LLAMESH_URL", f"http://127.0.0.2:{free_ports(1)[0]}")
    assert run(arguments) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert "llamesh up" not in said
    assert "hint: start it on its machine" in said


@pytest.mark.parametrize(
    "arguments", [["login", "ada", "--password-stdin"], ["status"], ["api", "GET", "/status"]], ids=" ".join
)
def test_an_authority_that_is_not_trusted_is_named(
    arguments: list[str], other_mesh: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    monkeypatch.setenv("LLAMESH_URL", other_mesh)
    assert run(arguments) == Exit.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"error: {other_mesh}: its certificate is not trusted\n")
    assert "hint: `llamesh tls trust ca.pem`" in said


def test_the_hint_fits_the_fault_of_the_certificate() -> None:
    assert "--renew" in untrusted("https://a", "CERTIFICATE_VERIFY_FAILED: certificate has expired").hint
    assert "--name" in untrusted("https://a", "certificate verify failed: Hostname mismatch").hint


def test_the_address_to_use_has_a_port_and_brackets() -> None:
    for plain, right in {"http://[::1]": "https://[::1]:8200", "http://a.lan:9": "https://a.lan:9"}.items():
        told = encrypted(plain)
        assert told is not None
        assert told.hint == f"use {right}"
    assert encrypted("https://a.lan:9") is None


@pytest.mark.parametrize("arguments", [["status"], ["doctor"], ["version"]], ids=" ".join)
def test_no_log_line_of_grpc_comes_before_the_message(arguments: list[str], other_mesh: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", *arguments],
        env={**os.environ, "LLAMESH_URL": other_mesh},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {Exit.OK, Exit.FAILED, Exit.USAGE}
    assert not [line for line in done.stderr.splitlines() if ".cc:" in line or "ssl" in line.lower().split(":")[0]]
