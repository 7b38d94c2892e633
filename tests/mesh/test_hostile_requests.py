"""Requests that mean harm, at every port of a whole mesh: each is refused in the port's own words and nothing is worse for it."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.files import contents_below
from tests.mesh.conftest import Served
from tests.processes import command_line, engines, mesh_processes

INSIDES = ("google.protobuf", "Traceback", "Unexpected", "sqlalchemy", "metadata size")
"""Words that tell how the mesh is made."""
BODIES: dict[str, bytes] = {
    "unknown field at depth": b'{"model_uuid":"a","parameters":{"nope":1}}',
    "number beyond its type": b'{"model_uuid":"a","replicas":99999999999999999999999}',
    "number that is none": b'{"model_uuid":"a","replicas":"2x"}',
    "not a number": b'{"model_uuid":"a","parameters":{"rope_freq_base":"NaN"}}',
    "10,000 brackets": b"[" * 10_000 + b"]" * 10_000,
    "10,000 braces": b'{"parameters":' * 10_000 + b"1" + b"}" * 10_000,
    "invalid UTF-8": b'{"model_uuid":"\xff\xfe"}',
    "NUL": b'{"model_uuid":"a\x00b"}',
    "half a surrogate pair": b'{"model_uuid":"\\ud800"}',
    "keys without quotes": b"{model_uuid:'a',nope:1}",
    "a comment": b'{/**/"model_uuid":"a"}',
    "two objects": b'{"model_uuid":"a"}{"nope":1}',
    "an array": b"[1]",
    "an extension": b'{"[llamesh.v1.access]":{"scope":"x"}}',
    "nothing": b"",
}
PATHS = (
    "/servers/%ff",
    "/status?page_token=%ff%fe",
    "/status?page_token=" + "a" * 9000,
    "/status?page_size=99999999999",
    "/status?page_size=-1",
    "/status?nope=1",
    "/servers/a%2fb",
    "/servers/a%00b",
    "/servers/a%0ab",
    "/servers/..%2f..%2fstatus",
    "/llamesh.v1.SigningKeyService/SignToken",
)
RAW: dict[str, bytes] = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "an unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a header of 70 KB": b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
}
NAMES = ("a\r\nx-llamesh-cluster: m:x", "m:x", 'a"b', "%REQ(authorization)%", "a\x00b", "ü", " ", "a" * 300, "../x")
WINDOWS = ("repeat_last_n", "dry_penalty_last_n")


@pytest.fixture(autouse=True)
def engine_unharmed(served: Served) -> Iterator[None]:
    """After each test the same engine still answers."""
    before = engines(served.mesh.home)
    yield
    body = {"model": served.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert served.mesh.http.post(served.mesh.url("inference", "/v1/chat/completions"), json=body).status_code == 200
    assert engines(served.mesh.home) == before


def assert_refused(answer: httpx.Response) -> None:
    """A refusal of the management API: the caller's fault, in JSON, without insides."""
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert answer.json()["message"]
    assert not [word for word in INSIDES if word in answer.text]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_management_refuses_bodies(served: Served, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert_refused(served.mesh.call("POST", "/serve", content=body, headers=headers))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
def test_management_refuses_paths(served: Served, path: str) -> None:
    assert_refused(served.mesh.call("GET", path))


@pytest.mark.parametrize("message", [b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_message_are_an_invalid_argument(served: Served, message: bytes) -> None:
    frame = b"\0" + struct.pack(">I", len(message)) + message
    path = "/llamesh.v1.GatewayService/GetServer"
    answer = served.mesh.call("POST", path, content=frame, headers={"content-type": "application/grpc-web+proto"})
    assert b"grpc-status:3" in answer.content.replace(b" ", b"") or answer.headers.get("grpc-status") == "3"


@pytest.mark.parametrize("port", ["gateway", "inference"])
@pytest.mark.parametrize("rest", RAW.values(), ids=RAW)
def test_one_request_is_never_read_as_two(served: Served, port: str, rest: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.mesh.ports[port]), timeout=60) as client:
        client.sendall(b"POST /serve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + rest)
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.split()[1] in {b"400", b"431", b"501"}


@pytest.mark.parametrize("name", NAMES)
def test_model_names_are_names_and_nothing_more(served: Served, name: str) -> None:
    body = {"model": name, "messages": [], "max_tokens": 1}
    answer = served.mesh.http.post(served.mesh.url("inference", "/v1/chat/completions"), json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("number", ["2147483647", "2e9"])
def test_one_request_cannot_take_the_machines_memory(served: Served, window: str, number: str) -> None:
    body = f'{{"model":"{served.model}","prompt":"a","dry_multiplier":1,"repeat_penalty":1.1,"{window}":{number}}}'
    headers = {"content-type": "application/json"}
    answer = served.mesh.http.post(served.mesh.url("inference", "/v1/completions"), content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, window)


@pytest.mark.parametrize("port", ["inference", "gateway"])
def test_three_hundred_unfinished_requests_block_no_other_request(served: Served, port: str) -> None:
    with ExitStack() as open_ones:
        for _ in range(300):
            client = open_ones.enter_context(
                socket.create_connection(("127.0.0.1", served.mesh.ports[port]), timeout=60)
            )
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        began = time.monotonic()
        assert served.mesh.call("GET", "/status").status_code == 200
        body: dict[str, Any] = {"model": served.model, "messages": [], "max_tokens": 1}
        assert served.mesh.http.post(served.path("/v1/chat/completions"), json=body).status_code == 200
        # Far less than the 10 minutes after which Envoy gives one of them up.
        assert time.monotonic() - began < 30


def test_no_secret_is_written_and_nothing_is_open_to_others(served: Served) -> None:
    mesh = served.mesh
    key = mesh.call("POST", "/keys", json={"display_name": "x", "scopes": ["infer:*"]}).json()["token"]
    prompt, password = "prompt-of-a-hostile-test", "password-of-a-hostile-test"
    body = {"model": served.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}
    mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body, headers=headers)
    mesh.http.post(mesh.url("gateway", "/auth/token"), json={"username": "nobody", "password": password})
    mesh.http.post(mesh.url("gateway", "/auth/token"), content=json.dumps({"password": password})[:-1])
    kept = [path.read_text().strip() for path in (mesh.home / "secrets").iterdir()]
    secrets = [prompt, password, key, mesh.token, *kept]
    written = b"".join(contents_below(mesh.home / "logs").values()).decode(errors="replace")
    for process in mesh_processes(mesh.home):
        written += " ".join(command_line(process))
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end at any moment
            written += Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
    assert not [secret[:12] for secret in secrets if secret in written]
    ours = [path for path in mesh.home.rglob("*") if mesh.home / "import" not in (path, path.parent)]
    assert not [path for path in ours if open_to_others(path)]


def open_to_others(path: Path) -> bool:
    """Whether another user may do something with it; a link, and what was removed meanwhile, is open to none."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    return bool(stat.S_IMODE(mode) & 0o077) and not stat.S_ISLNK(mode)
