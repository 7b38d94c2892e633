"""The management listener: who is let in, by token, scheme, address, host name and origin."""

from __future__ import annotations

import base64
import json
import struct

import grpc
import jwt
import pytest
from google.rpc import status_pb2

from llamesh.kit.errors import DETAILS_KEY
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.contract.rich_status import read_refusal
from tests.mesh.front_door import token
from tests.mesh.management_door import (
    BEARER,
    BEHIND_PROXY,
    OF_DOWNLOADS,
    ON_A_NETWORK,
    SERVICE,
    Mesh,
    status_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_public_rest_calls_need_no_token(managed: Mesh) -> None:
    door, gateway = managed
    health = await door.send("GET", "/health", None, {"x-llamesh-claims": "evil", "X-Llamesh-Claims": "evil"})
    assert (health.status, health.json()["version"]) == (200, "1")
    assert "x-llamesh-claims" not in gateway.metadata[-1]
    answer = await door.send("POST", "/auth/token", {"username": "ada", "password": "x"})
    assert answer.json() == {"access_token": "a.b.c", "token_type": "bearer", "expires_in": 3600}
    assert gateway.requests[-1] == gateway_pb2.CreateTokenRequest(username="ada", password="x")


async def test_everything_else_needs_one(managed: Mesh) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    for verb, path in (
        ("GET", "/servers/a"),
        ("GET", "/status"),
        ("DELETE", "/health"),
        ("GET", "/auth/token"),
        ("GET", "/nowhere"),
    ):
        answer = await door.send(verb, path)
        assert answer.status == 401
        info, remedy = status_of(answer, 16)["details"]
        assert (info["reason"], info["domain"]) == ("UNAUTHENTICATED", "llamesh")
        assert "POST /auth/token" in remedy["message"]
    foreign = "This token was not made by this mesh"
    for bad, words in (
        (token(key=b"f" * 32), foreign),
        (token(aud="other"), foreign),
        (token(iss="other"), foreign),
        (jwt.encode({"exp": 9999999999}, b"f" * 32, "HS256", {"kid": "another"}), foreign),
        (token(exp=1), "The token has expired."),
        ("not-needed", "This is no token of this mesh."),
        ("a.b.c", "This is no token of this mesh."),
    ):
        answer = await door.send("GET", "/servers/a", None, {"authorization": f"Bearer {bad}"})
        assert answer.status == 401
        assert status_of(answer, 16)["message"].startswith(words)
    assert len(gateway.requests) == count


async def test_verified_claims_reach_the_service_and_forged_ones_do_not(managed: Mesh) -> None:
    door, gateway = managed
    await door.send("GET", "/servers/a", None, [*BEARER.items(), ("x-llamesh-claims", "evil")])
    claims = gateway.metadata[-1]["x-llamesh-claims"]
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"] == "ada"
    assert "authorization" not in gateway.metadata[-1]


async def test_the_address_of_a_caller_is_its_connection_and_never_a_header(managed: Mesh) -> None:
    door, gateway = managed
    said = [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "203.0.113.8, 203.0.113.7"),
        ("x-real-ip", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
        ("x-envoy-external-address", "203.0.113.9"),
        ("x-llamesh-client-address", "203.0.113.9"),
    ]
    await door.send("POST", "/auth/token", {"username": "ada", "password": "x"}, said)
    assert gateway.metadata[-1]["x-llamesh-client-address"] == "127.0.0.1"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        request = gateway_pb2.CreateTokenRequest(username="ada", password="x")
        await stub.CreateToken(request, metadata=said)
    assert gateway.metadata[-1]["x-llamesh-client-address"] == "127.0.0.1"
    addresses = [value for key, value in gateway.pairs[-1] if key == "x-llamesh-client-address"]
    assert addresses == ["127.0.0.1"]


async def test_behind_a_proxy_the_address_is_the_one_that_the_proxy_saw(managed: Mesh) -> None:
    door, gateway = managed
    for said, address in (
        ([("x-forwarded-for", "198.51.100.1, 203.0.113.9")], "203.0.113.9"),
        ([("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
        ([], "127.0.0.1"),
    ):
        body = {"username": "ada", "password": "x"}
        await door.send("POST", "/auth/token", body, said, port=BEHIND_PROXY)
        assert gateway.metadata[-1]["x-llamesh-client-address"] == address


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "BeArEr", "Bearer  "])
async def test_the_scheme_of_a_token_may_be_written_in_any_case(managed: Mesh, scheme: str) -> None:
    door, _ = managed
    assert (await door.send("GET", "/servers/a", None, {"authorization": f"{scheme} {token()}"})).status == 404
    assert (await door.send("GET", "/servers/a", None, {"authorization": f"{scheme} a.b.c"})).status == 401


@pytest.mark.parametrize("value", [f"Basic {token()}", token(), f"Bearer\t{token()}", f"Token {token()}"])
async def test_another_scheme_is_none(managed: Mesh, value: str) -> None:
    door, _ = managed
    answer = await door.send("GET", "/servers/a", None, {"authorization": value})
    assert answer.status == 401
    assert status_of(answer, 16)["message"].startswith("This call needs a token.")


REBOUND = "evil.example:8200"
"""A host name that its owner has made to lead to this machine."""


async def test_a_page_whose_name_was_rebound_cannot_log_in(managed: Mesh) -> None:
    door, gateway = managed
    count = len(gateway.requests)
    login = {"username": "admin", "password": "admin"}
    for port, headers in (
        (door.port, {}),
        (door.port, {"origin": f"http://{REBOUND}"}),
        (ON_A_NETWORK, {"origin": f"http://{REBOUND}"}),
    ):
        answer = await door.send("POST", "/auth/token", login, {"host": REBOUND} | headers, port)
        assert answer.status == 403
        error = status_of(answer, 7)
        assert error["details"][0]["reason"] == "HOST_NOT_ALLOWED"
        assert error["details"][0]["metadata"] == {"host": "evil.example"}
        assert "evil.example" in error["message"]
        assert "LLAMESH_ALLOWED_HOSTS" in error["message"]
    request = gateway_pb2.CreateTokenRequest(**login).SerializeToString()
    web = {"host": REBOUND, "content-type": "application/grpc-web+proto", "origin": f"http://{REBOUND}"}
    answer = await door.send("POST", f"{SERVICE}/CreateToken", b"\0" + struct.pack(">I", len(request)) + request, web)
    assert answer.headers["grpc-status"] == "7"
    assert "LLAMESH_ALLOWED_HOSTS" in answer.headers["grpc-message"]
    assert status_pb2.Status.FromString(base64.b64decode(answer.headers[DETAILS_KEY] + "==")).code == 7
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}", (("grpc.default_authority", REBOUND),)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway_pb2_grpc.GatewayServiceStub(channel).CreateToken(gateway_pb2.CreateTokenRequest(**login))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    status = status_pb2.Status.FromString(dict(refused.value.trailing_metadata() or ())[DETAILS_KEY])
    assert (status.code, status.message) == (7, refused.value.details())
    assert "LLAMESH_ALLOWED_HOSTS" in status.message
    assert len(gateway.requests) == count


async def test_a_known_name_logs_in_and_any_name_reads_the_health(managed: Mesh) -> None:
    door, _ = managed
    login = {"username": "ada", "password": "x"}
    for host in ("llm.example", "llm.example:8200", "localhost:8200", "127.0.0.1"):
        assert (await door.send("POST", "/auth/token", login, {"host": host})).status == 200
    assert (await door.send("POST", "/auth/token", login, {"host": "gpu-box.lan"}, ON_A_NETWORK)).status == 200
    for verb in ("GET", "HEAD"):
        assert (await door.send(verb, "/health", None, {"host": REBOUND})).status == 200
    assert (await door.send("GET", "/servers/a", None, BEARER | {"host": REBOUND})).status == 404
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{door.port}", (("grpc.default_authority", "llm.example"),)
    ) as channel:
        await gateway_pb2_grpc.GatewayServiceStub(channel).CreateToken(gateway_pb2.CreateTokenRequest(**login))


@pytest.mark.parametrize("path", ["/health", "/health/"])
async def test_the_port_of_another_service_says_the_health_to_any_caller(managed: Mesh, path: str) -> None:
    door, gateway = managed
    for verb in ("GET", "HEAD"):
        for headers in ({"host": REBOUND, "x-llamesh-claims": "evil"}, BEARER, {"authorization": "Bearer wrong"}):
            answer = await door.send(verb, path, None, headers, OF_DOWNLOADS)
            assert answer.status == 200
            assert verb == "HEAD" or answer.json()["version"] == "1"
    count = len(gateway.requests)
    status_of(await door.send("GET", "/health?nope=1", None, BEARER, OF_DOWNLOADS), 3)
    for verb, other in (("POST", "/health"), ("GET", "/models"), ("GET", "/servers/a")):
        assert (await door.send(verb, other, None, None, OF_DOWNLOADS)).status == 401
        status_of(await door.send(verb, other, None, BEARER, OF_DOWNLOADS), 12)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{OF_DOWNLOADS}") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetServer(gateway_pb2.GetServerRequest(server_uuid="a"), metadata=tuple(BEARER.items()))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(gateway.requests) == count


async def test_calls_of_the_gateway_at_another_services_port_name_the_right_port(managed: Mesh) -> None:
    """A call without a token was sent to a login that the port does not have."""
    door, gateway = managed
    count = len(gateway.requests)
    login = await door.send("POST", "/auth/token", {"username": "ada", "password": "x"}, None, OF_DOWNLOADS)
    status = status_of(login, 12)
    assert (
        f"the port of the of-downloads service; logins and all other management calls go to port {door.port}."
        in status["message"]
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{OF_DOWNLOADS}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway_pb2_grpc.GatewayServiceStub(channel).ListModels(gateway_pb2.ListModelsRequest())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert read_refusal(refused.value).metadata == {"service": "of-downloads", "port": str(door.port)}
    assert len(gateway.requests) == count


async def test_browsers_of_allowed_origins_only(managed: Mesh) -> None:
    door, _ = managed
    ask = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    good = await door.send("OPTIONS", "/servers/a", None, ask | {"origin": "http://ui"})
    assert (good.status, good.headers["access-control-allow-origin"]) == (200, "http://ui")
    assert (
        "access-control-allow-origin"
        not in (await door.send("OPTIONS", "/servers/a", None, ask | {"origin": "http://evil"})).headers
    )
    for origin, allowed in (
        ("http://ui", "http://ui"),
        ("http://evil", None),
        ("https://a.b.ui.example", "https://a.b.ui.example"),
        ("https://ui.example", None),
    ):
        answer = await door.send("GET", "/health", None, {"origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed
