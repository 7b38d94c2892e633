"""A management listener with a real Envoy and a stub gateway: REST, gRPC and gRPC-Web, and every error in its right form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from llamesh.addresses import listening_addresses
from llamesh.v1 import gateway_pb2
from tests.mesh.front_door import PATIENCE
from tests.mesh.http_connection import Connection, read_body, read_head
from tests.mesh.management_door import (
    BEARER,
    OF_DOWNLOADS,
    SERVICE,
    Mesh,
    status_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_services_error_is_a_json_status(managed: Mesh) -> None:
    door, _ = managed
    answer = await door.send("GET", "/servers/a", None, BEARER)
    assert (answer.status, answer.json()) == (404, {"code": 5, "message": "no such server", "details": []})


@pytest.mark.parametrize(
    ("verb", "path", "body", "headers", "status", "code"),
    [
        ("PATCH", "/health", None, {}, 404, 12),
        ("PATCH", "/models", {}, {}, 404, 12),
        ("POST", "/servers/a", {}, {}, 404, 12),
        ("GET", "/nowhere", None, {}, 404, 12),
        ("HEAD", "/watch", None, {}, 404, 12),
        ("GET", "/health?nope=1", None, {}, 400, 3),
        ("GET", "/servers%2Fa", None, {}, 400, 3),
        ("POST", "/auth/token", {"username": "a", "pasword": "b"}, {}, 400, 3),
        ("POST", "/auth/token", {"username": 7}, {}, 400, 3),
        ("POST", "/auth/token", b"{", {"content-type": "application/json"}, 400, 3),
        ("POST", "/servers/a:scale", {"replicas": 99999999999}, {}, 400, 3),
        ("POST", "/servers/a:scale", {"replicas": "many"}, {}, 400, 3),
        ("POST", "/auth/token", b"username=a", {"content-type": "application/x-www-form-urlencoded"}, 415, 3),
        ("POST", "/auth/token", {"username": "a" * (70 << 10)}, {}, 413, 3),
        (
            "POST",
            "/auth/token",
            b'{"username":"a"}',
            {"content-type": "application/json", "content-encoding": "gzip"},
            415,
            3,
        ),
        ("POST", "/auth/token/", {"username": "a", "x": 1}, {}, 400, 3),
        ("POST", "/servers/a:b:scale", {"replicas": 1, "x": 1}, {}, 400, 3),
    ],
)
async def test_paths_and_fields_that_the_contract_lacks_are_refused(
    managed: Mesh, verb: str, path: str, body: Any, headers: dict[str, str], status: int, code: int
) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    answer = await door.send(verb, path, body, headers | BEARER)
    assert answer.status == status
    if verb != "HEAD":
        details = status_of(answer, code)["details"]
        assert details[0]["reason"] == ("NOT_IMPLEMENTED" if code == 12 else "INVALID_FIELD")
    assert len(gateway.requests) == count


async def test_a_long_body_without_a_token_is_refused_before_it_has_arrived(managed: Mesh) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    status, words = await _unfinished(door.port, "POST /auth/token", "content-length: 65000")
    body = json.loads(words)
    assert status == 413
    assert "16384 bytes" in body["message"], body
    assert body["details"][0]["reason"] == "INVALID_FIELD"
    assert len(gateway.requests) == count


@pytest.mark.parametrize("verb", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/health/", "/.well-known/jwks.json"])
@pytest.mark.parametrize("length", ["content-length: 65000", "transfer-encoding: chunked"])
async def test_a_get_without_a_token_makes_envoy_hold_no_long_body(
    managed: Mesh, verb: str, path: str, length: str
) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    for port in (door.port, OF_DOWNLOADS) if path.startswith("/health") else (door.port,):
        assert (await _unfinished(port, f"{verb} {path}", length))[0] == 413
    assert len(gateway.requests) == count


async def test_a_login_of_unstated_length_is_refused_at_the_same_bound(managed: Mesh) -> None:
    door, _ = managed
    status, words = await _unfinished(door.port, "POST /auth/token", "transfer-encoding: chunked")
    assert (status, "or without a token 16384 bytes" in words) == (413, True)


async def test_a_long_call_of_grpc_without_a_token_is_not_held_for_a_retry(managed: Mesh) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        call = channel.unary_unary(f"{SERVICE}/GetHealth", None, gateway_pb2.Health.FromString)
        assert (await call(b"\x7a\xc0\xb8\x02" + b"x" * 40_000, timeout=PATIENCE)).version == "1"
    assert len(gateway.requests) == count + 1


async def _unfinished(port: int, line: str, length: str) -> tuple[int, str]:
    """Begin a request whose body has 65,000 bytes, and send the first 40,000; return status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    chunk = b"9c40\r\n" if "chunked" in length else b""
    head = f"{line} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
    writer.write(head.encode() + chunk + b" " * 40_000)
    try:
        first, headers = await asyncio.wait_for(read_head(reader), PATIENCE)
        body = b"" if line.startswith("HEAD") else await read_body(reader, headers)
    finally:
        writer.close()
    return int(first.split()[1]), body.decode()


GRPC_WEB = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
]


@pytest.mark.parametrize(
    "content_type",
    [
        *(
            "application/grpcx",
            "application/grpc-x",
            "application/grpc_json",
            "application/grpc;x=1",
            "APPLICATION/GRPC",
        ),
        *("application/grpc-webx", "application/GRPC-web", "application/grpc-web; x=1", "application/grpc,x"),
        *("application/grpc", "application/grpc+proto", "application/grpc+", *GRPC_WEB),
    ],
)
async def test_no_content_type_gets_a_field_past_the_contract(managed: Mesh, content_type: str) -> None:
    """What Envoy takes for gRPC is no REST call, all else is none either unless it is JSON."""
    door, gateway = managed
    count = len(gateway.requests)
    body = b'{"username":"ada","pasword":"x"}'
    for headers in (
        [("content-type", content_type)],
        [("content-type", content_type), ("content-type", "application/json")],
    ):
        answer = await door.send("POST", "/auth/token", body, headers)
        assert answer.status in (400, 404, 415) or answer.headers["grpc-status"] == "12"
    assert len(gateway.requests) == count


async def test_a_byte_order_mark_is_skipped(managed: Mesh) -> None:
    door, gateway = managed
    answer = await door.send(
        "POST", "/auth/token", b'\xef\xbb\xbf{"username":"bom"}', {"content-type": "application/json"}
    )
    assert answer.status == 200
    assert gateway.requests[-1].username == "bom"


async def test_head_is_a_get_without_its_body(managed: Mesh) -> None:
    door, _ = managed
    connection = await door.connect()
    for path in ("/health", "/health/"):
        length = (await connection.send("GET", path)).headers["content-length"]
        answer = await connection.send("HEAD", path)
        # The connection is good for the next request, so nothing followed the head.
        assert (answer.status, answer.headers["content-length"]) == (200, length)


async def test_headers_with_an_underscore_are_dropped_and_their_request_is_not(managed: Mesh) -> None:
    door, gateway = managed
    answer = await door.send(
        "GET", "/health", None, {"session_id": "s", "x_llamesh_claims": "evil", "grpc_timeout": "1n"}
    )
    assert answer.status == 200
    assert not [name for name in gateway.metadata[-1] if "_" in name]


async def test_an_offer_of_another_protocol_is_ignored(managed: Mesh) -> None:
    door, _ = managed
    answer = await door.send("GET", "/health", None, {"upgrade": "websocket", "connection": "Upgrade"})
    assert answer.status == 200


async def test_a_call_with_path_and_body(managed: Mesh) -> None:
    door, gateway = managed
    answer = await door.send("POST", "/servers/abc:scale", {"replicas": 2}, BEARER)
    assert answer.status == 200
    assert gateway.requests[-1] == gateway_pb2.ScaleServerRequest(server_uuid="abc", replicas=2)


async def test_a_stream_is_one_json_message_a_line(managed: Mesh) -> None:
    door, _ = managed
    answer = await door.send("GET", "/watch", None, BEARER)
    assert answer.status == 200
    assert [type(json.loads(line)) for line in answer.body.splitlines()] == [dict, dict]


async def test_every_address_of_localhost_is_listened_on(managed: Mesh) -> None:
    door, _ = managed
    for address in listening_addresses("localhost"):
        reader, writer = await asyncio.open_connection(address, door.port)
        connection = Connection(reader, writer)
        assert (await connection.send("GET", "/health")).status == 200
        connection.close()


async def test_no_filter_script_failed(managed: Mesh) -> None:
    door, _ = managed
    assert "script log" not in door.log()
    assert not door.control.stats.refused
