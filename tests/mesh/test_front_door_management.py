"""A management listener with a real Envoy and a stub gateway: REST, gRPC and gRPC-Web, and every error in its right form."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from controller.xds import templates
from controller.xds.management import ManagementSettings
from controller.xds.tokens import TokenSettings
from llamesh.addresses import listening_addresses
from llamesh.kit.errors import DETAILS_KEY
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, server_pb2
from tests.mesh.front_door import JWKS, Connection, FrontDoor, front_door, token
from tests.ports import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "/llamesh.v1.GatewayService"
BEHIND_PROXY, ON_A_NETWORK = free_ports(2)
"""Of a listener that has one proxy before it, and of one that holds only web pages to host names."""
BEARER = {"authorization": f"Bearer {token()}"}


class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers, and remembers what it was told."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.pairs: list[list[tuple[str, Any]]] = []

    def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.pairs.append(list(context.invocation_metadata()))
        self.metadata.append(dict(context.invocation_metadata()))

    async def GetHealth(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return gateway_pb2.Health(version="1")

    async def CreateToken(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return gateway_pb2.CreateTokenResponse(access_token="a.b.c", token_type="bearer", expires_in=3600)

    async def GetServer(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such server")

    async def ScaleServer(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return server_pb2.Server()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._note(request, context)
        for _ in range(2):
            yield gateway_pb2.WatchResponse()


def management(door: FrontDoor) -> ManagementSettings:
    return ManagementSettings(
        "gateway",
        listening_addresses("localhost"),
        door.port,
        TokenSettings(JWKS),
        (("llamesh.v1.GatewayService", "gateway"), ("llamesh.v1.ContractService", "contract")),
        templates.FOLDER / "llamesh.binpb",
        allowed_origins=frozenset({"http://ui", "https://*.ui.example"}),
        allowed_hosts=frozenset({"llm.example"}),
        max_body_bytes=64 << 10,
        restart_retries=14,
    )


async def serve(door: FrontDoor, gateway: Gateway) -> grpc.aio.Server:
    server = grpc.aio.server()
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
    server.add_insecure_port(f"unix:{door.socket('gateway')}")
    await server.start()
    return server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[tuple[FrontDoor, Gateway]]:
    async with front_door(running=False) as door:
        gateway = Gateway()
        server = await serve(door, gateway)
        behind_proxy = replace(management(door), name="behind-proxy", port=BEHIND_PROXY, trusted_proxies=1)
        on_a_network = replace(management(door), name="on-a-network", port=ON_A_NETWORK, any_host=True)
        await door.start(None, (management(door), behind_proxy, on_a_network))
        yield door, gateway
        await server.stop(None)


Mesh = tuple[FrontDoor, Gateway]


INTERNAL_WORDS = (
    "jwt",
    "jwks",
    "upstream",
    "transcod",
    "normalization",
    "reset",
    "codec",
    "http1",
    "type_",
    "llamesh.v1",
)
"""Of Envoy, which a client has never heard of."""


def plain(message: str) -> None:
    """A message has words for its reader."""
    assert message
    assert not [word for word in INTERNAL_WORDS if word in message.lower()]


def status_of(answer: Any, code: int) -> dict[str, Any]:
    """The google.rpc.Status of an error; its code and the answer's form are checked."""
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"code", "message", "details"}
    assert body["code"] == code
    plain(body["message"])
    assert body["details"] == [] or body["details"][0]["@type"].endswith("google.rpc.ErrorInfo")
    for detail in body["details"]:
        assert "fieldViolations" not in detail
    return body


async def test_rest_without_a_token_where_the_contract_says_so(mesh: Mesh) -> None:
    door, gateway = mesh
    health = await door.send("GET", "/health", None, {"x-llamesh-claims": "evil", "X-Llamesh-Claims": "evil"})
    assert (health.status, health.json()["version"]) == (200, "1")
    assert "x-llamesh-claims" not in gateway.metadata[-1]
    answer = await door.send("POST", "/auth/token", {"username": "ada", "password": "x"})
    assert answer.json() == {"access_token": "a.b.c", "token_type": "bearer", "expires_in": 3600}
    assert gateway.requests[-1] == gateway_pb2.CreateTokenRequest(username="ada", password="x")


async def test_everything_else_needs_one(mesh: Mesh) -> None:
    door, gateway = mesh
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


async def test_verified_claims_reach_the_service_and_forged_ones_do_not(mesh: Mesh) -> None:
    door, gateway = mesh
    await door.send("GET", "/servers/a", None, [*BEARER.items(), ("x-llamesh-claims", "evil")])
    claims = gateway.metadata[-1]["x-llamesh-claims"]
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"] == "ada"
    assert "authorization" not in gateway.metadata[-1]


async def test_the_address_of_a_caller_is_what_connects_and_never_what_it_says(mesh: Mesh) -> None:
    door, gateway = mesh
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


async def test_behind_a_proxy_the_address_is_the_one_that_the_proxy_saw(mesh: Mesh) -> None:
    door, gateway = mesh
    for said, address in (
        ([("x-forwarded-for", "198.51.100.1, 203.0.113.9")], "203.0.113.9"),
        ([("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
        ([], "127.0.0.1"),
    ):
        body = {"username": "ada", "password": "x"}
        await door.send("POST", "/auth/token", body, said, port=BEHIND_PROXY)
        assert gateway.metadata[-1]["x-llamesh-client-address"] == address


async def test_a_services_error_is_a_json_status(mesh: Mesh) -> None:
    door, _ = mesh
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
async def test_what_the_contract_lacks_is_refused(
    mesh: Mesh, verb: str, path: str, body: Any, headers: dict[str, str], status: int, code: int
) -> None:
    door, gateway = mesh
    count = len(gateway.requests)
    answer = await door.send(verb, path, body, headers | BEARER)
    assert answer.status == status
    if verb != "HEAD":
        details = status_of(answer, code)["details"]
        assert details[0]["reason"] == ("NOT_IMPLEMENTED" if code == 12 else "INVALID_FIELD")
    assert len(gateway.requests) == count


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
async def test_no_content_type_gets_a_field_past_the_contract(mesh: Mesh, content_type: str) -> None:
    """What Envoy takes for gRPC is no REST call, all else is none either unless it is JSON."""
    door, gateway = mesh
    count = len(gateway.requests)
    body = b'{"username":"ada","pasword":"x"}'
    for headers in (
        [("content-type", content_type)],
        [("content-type", content_type), ("content-type", "application/json")],
    ):
        answer = await door.send("POST", "/auth/token", body, headers)
        assert answer.status in (404, 415) or answer.headers["grpc-status"] == "12"
    assert len(gateway.requests) == count


async def test_a_byte_order_mark_is_skipped(mesh: Mesh) -> None:
    door, gateway = mesh
    answer = await door.send(
        "POST", "/auth/token", b'\xef\xbb\xbf{"username":"bom"}', {"content-type": "application/json"}
    )
    assert answer.status == 200
    assert gateway.requests[-1].username == "bom"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "BeArEr", "Bearer  "])
async def test_the_scheme_of_a_token_may_be_written_in_any_case(mesh: Mesh, scheme: str) -> None:
    door, _ = mesh
    assert (await door.send("GET", "/servers/a", None, {"authorization": f"{scheme} {token()}"})).status == 404
    assert (await door.send("GET", "/servers/a", None, {"authorization": f"{scheme} a.b.c"})).status == 401


@pytest.mark.parametrize("value", [f"Basic {token()}", token(), f"Bearer\t{token()}", f"Token {token()}"])
async def test_another_scheme_is_none(mesh: Mesh, value: str) -> None:
    door, _ = mesh
    answer = await door.send("GET", "/servers/a", None, {"authorization": value})
    assert answer.status == 401
    assert status_of(answer, 16)["message"].startswith("This call needs a token.")


async def test_head_is_a_get_without_its_body(mesh: Mesh) -> None:
    door, _ = mesh
    connection = await door.connect()
    for path in ("/health", "/health/"):
        length = (await connection.send("GET", path)).headers["content-length"]
        answer = await connection.send("HEAD", path)
        # The connection is good for the next request, so nothing followed the head.
        assert (answer.status, answer.headers["content-length"]) == (200, length)


async def test_headers_with_an_underscore_are_dropped_and_their_request_is_not(mesh: Mesh) -> None:
    door, gateway = mesh
    answer = await door.send(
        "GET", "/health", None, {"session_id": "s", "x_llamesh_claims": "evil", "grpc_timeout": "1n"}
    )
    assert answer.status == 200
    assert not [name for name in gateway.metadata[-1] if "_" in name]


async def test_an_offer_of_another_protocol_is_ignored(mesh: Mesh) -> None:
    door, _ = mesh
    answer = await door.send("GET", "/health", None, {"upgrade": "websocket", "connection": "Upgrade"})
    assert answer.status == 200


async def test_a_call_with_path_and_body(mesh: Mesh) -> None:
    door, gateway = mesh
    answer = await door.send("POST", "/servers/abc:scale", {"replicas": 2}, BEARER)
    assert answer.status == 200
    assert gateway.requests[-1] == gateway_pb2.ScaleServerRequest(server_uuid="abc", replicas=2)


async def test_a_stream_is_one_json_message_a_line(mesh: Mesh) -> None:
    door, _ = mesh
    answer = await door.send("GET", "/watch", None, BEARER)
    assert answer.status == 200
    assert [type(json.loads(line)) for line in answer.body.splitlines()] == [dict, dict]


@pytest_asyncio.fixture(loop_scope="module")
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh[0].port}") as channel:
        yield channel


async def call(channel: grpc.aio.Channel, method: str, **metadata: str) -> Any:
    return await channel.unary_unary(method)(b"", metadata=tuple(metadata.items()), timeout=10)


async def test_grpc_passes_as_it_is(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    assert (await stub.GetHealth(gateway_pb2.GetHealthRequest())).version == "1"
    assert len([each async for each in stub.Watch(gateway_pb2.WatchRequest(), metadata=tuple(BEARER.items()))]) == 2


@pytest.mark.parametrize(
    ("method", "metadata", "code"),
    [
        (f"{SERVICE}/GetServer", {}, grpc.StatusCode.UNAUTHENTICATED),
        (f"{SERVICE}/GetServer", {"authorization": f"Bearer {token(aud='other')}"}, grpc.StatusCode.UNAUTHENTICATED),
        (f"{SERVICE}/GetServer", BEARER, grpc.StatusCode.NOT_FOUND),
        (f"{SERVICE}/Nope", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/llamesh.v1.SigningKeyService/GetKeys", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/llamesh.v1.ControllerService/ListDeclaredServers", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/nope.Nope/Nope", BEARER, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_grpc_clients_get_grpc_errors(
    channel: grpc.aio.Channel, method: str, metadata: dict[str, str], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(channel, method, **metadata)
    assert error.value.code() == code
    if code is grpc.StatusCode.NOT_FOUND:
        return  # the service's own
    details = dict(error.value.trailing_metadata() or ())[DETAILS_KEY]
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (code.value[0], error.value.details())
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "llamesh"
    assert info.reason == ("UNAUTHENTICATED" if code is grpc.StatusCode.UNAUTHENTICATED else "NOT_IMPLEMENTED")
    plain(status.message)


async def test_grpc_web(mesh: Mesh) -> None:
    door, _ = mesh
    headers = {"content-type": "application/grpc-web+proto"}
    answer = await door.send("POST", f"{SERVICE}/GetHealth", b"\0" + struct.pack(">I", 0), headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    length = struct.unpack(">I", answer.body[1:5])[0]
    assert gateway_pb2.Health.FromString(answer.body[5 : 5 + length]).version == "1"
    assert b"grpc-status:0" in answer.body[5 + length :].replace(b" ", b"")
    for path, code in ((f"{SERVICE}/GetServer", "16"), (f"{SERVICE}/Nope", "12")):
        authorised = BEARER if code == "12" else {}
        refused = await door.send("POST", path, b"\0" + struct.pack(">I", 0), headers | authorised)
        assert refused.headers["grpc-status"] == code
        assert refused.headers["grpc-message"]
        padded = refused.headers[DETAILS_KEY] + "=="
        assert status_pb2.Status.FromString(base64.b64decode(padded)).code == int(code)


REBOUND = "evil.example:8200"
"""A host name that its owner has made to lead to this machine."""


async def test_a_page_whose_name_was_rebound_cannot_log_in(mesh: Mesh) -> None:
    door, gateway = mesh
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


async def test_a_known_name_logs_in_and_any_name_reads_the_health(mesh: Mesh) -> None:
    door, _ = mesh
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


async def test_browsers_of_allowed_origins_only(mesh: Mesh) -> None:
    door, _ = mesh
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


async def test_every_address_of_localhost_is_listened_on(mesh: Mesh) -> None:
    door, _ = mesh
    for address in listening_addresses("localhost"):
        reader, writer = await asyncio.open_connection(address, door.port)
        connection = Connection(reader, writer)
        assert (await connection.send("GET", "/health")).status == 200
        connection.close()


async def test_no_filter_script_failed(mesh: Mesh) -> None:
    door, _ = mesh
    assert "script log" not in door.log()
    assert not door.control.stats.refused


async def test_a_service_that_restarts_is_waited_for_and_one_that_stays_away_is_503() -> None:
    async with front_door(running=False) as door:
        gateway = Gateway()
        server = await serve(door, gateway)
        await door.start(None, (management(door),))
        assert (await door.send("GET", "/health")).status == 200
        await server.stop(None)
        asking = [
            asyncio.create_task(door.send("POST", "/auth/token", {"username": "a", "password": "b"})) for _ in range(5)
        ]
        await asyncio.sleep(0.5)
        server = await serve(door, gateway)
        assert [(await each).status for each in asking] == [200] * 5
        assert len(gateway.requests) == 6
        await server.stop(None)
        away = await door.send("GET", "/health")
        assert (away.status, away.headers["retry-after"]) == (503, "1")
        assert status_of(away, 14)["details"][0]["reason"] == "COMPONENT_UNAVAILABLE"


async def test_a_call_that_only_reads_is_asked_again_if_it_was_lost_with_its_service() -> None:
    async with front_door(running=False) as door:
        await door.start(None, (management(door),))
        lost: list[bytes] = []

        async def lose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """A service that dies with each request that it has."""
            while b"GatewayService" not in b"".join(lost[-1:]) and (read := await reader.read(65536)):
                lost.append(read)
                if len(read) > 100:
                    break
            writer.transport.abort()

        async def asked(method: str, path: str, body: dict[str, Any] | None) -> int:
            """Status of a call whose first service dies with it and whose second is well."""
            lost.clear()
            dying = await asyncio.start_unix_server(lose, door.socket("gateway"))
            call = asyncio.create_task(door.send(method, path, body))
            async with asyncio.timeout(10):
                while not lost and not call.done():
                    await asyncio.sleep(0.01)
            dying.close()
            Path(door.socket("gateway")).unlink(missing_ok=True)
            server = await serve(door, Gateway())
            try:
                return (await call).status
            finally:
                await server.stop(None)
                Path(door.socket("gateway")).unlink(missing_ok=True)

        assert await asked("GET", "/health", None) == 200
        assert await asked("POST", "/auth/token", {"username": "a", "password": "b"}) == 503
