"""The management listeners of a real Envoy with a stub of the gateway behind them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from controller.xds import templates
from controller.xds.management import ManagementSettings
from controller.xds.tokens import TokenSettings
from llamesh.addresses import listening_addresses
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, server_pb2
from tests.mesh.front_door import JWKS, FrontDoor, front_door, token
from tests.ports import free_ports

SERVICE = "/llamesh.v1.GatewayService"

BEHIND_PROXY, ON_A_NETWORK, OF_DOWNLOADS = free_ports(3)
"""Of a listener that has one proxy before it, of one that holds only web pages to host names, and of one that serves the health of the
gateway beside the service of its port."""

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


Mesh = tuple[FrontDoor, Gateway]


@contextlib.asynccontextmanager
async def management_door() -> AsyncIterator[Mesh]:
    """Four listeners: the usual one, one behind a proxy, one that takes any host name, and one of another service."""
    async with front_door(running=False) as door:
        gateway = Gateway()
        server = await serve(door, gateway)
        behind_proxy = replace(management(door), name="behind-proxy", port=BEHIND_PROXY, trusted_proxies=1)
        on_a_network = replace(management(door), name="on-a-network", port=ON_A_NETWORK, any_host=True)
        of_downloads = replace(
            management(door),
            name="of-downloads",
            port=OF_DOWNLOADS,
            services=(("llamesh.v1.DownloadService", "download"),),
            open_methods=(("llamesh.v1.GatewayService/GetHealth", "gateway"),),
            gateway_port=door.port,
        )
        await door.start(None, (management(door), behind_proxy, on_a_network, of_downloads))
        yield door, gateway
        await server.stop(None)


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
