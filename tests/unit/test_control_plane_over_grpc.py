"""The control plane over a real gRPC stream, a scripted client in Envoy's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.xds.clusters import ServerEndpoints
from controller.xds.inference import InferenceSettings
from controller.xds.serving import ControlPlane
from controller.xds.snapshot import CDS, EDS, RDS
from controller.xds.tokens import TokenSettings
from llamesh.kit import envoy_api

REQUEST = envoy_api.message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")
RESPONSE = envoy_api.message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse")
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def server(uuid: str, *ready: str, names: tuple[str, ...] = (), connections: int = 4) -> ServerEndpoints:
    return ServerEndpoints(uuid, names, ready, connections)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[tuple[ControlPlane, str]]:
    control, grpc_server = ControlPlane(), grpc.aio.server()
    control.add_to(grpc_server)
    address = f"unix:{tmp_path / 'c.sock'}"
    grpc_server.add_insecure_port(address)
    await grpc_server.start()
    yield control, address
    await grpc_server.stop(None)


class Client:
    """A scripted Envoy."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        call = self._channel.stream_stream(
            METHOD,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=RESPONSE.FromString,
        )
        self._call = call()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def ask(self, type_url: str, *names: str) -> None:
        await self._call.write(REQUEST(type_url=type_url, resource_names_subscribe=names))

    async def read(self, timeout: float = 5) -> Any:
        return await asyncio.wait_for(self._call.read(), timeout)

    async def take(self, response: Any, error: str = "") -> None:
        detail = {"code": 13, "message": error} if error else None
        await self._call.write(REQUEST(type_url=response.type_url, response_nonce=response.nonce, error_detail=detail))


async def test_nothing_is_sent_before_publish(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    async with Client(address) as envoy:
        await envoy.ask(CDS)
        read = asyncio.create_task(envoy.read(10))
        while not control.stats.connected:
            await asyncio.sleep(0.01)
        control.set_server(server("a"))
        assert not (await asyncio.wait([read], timeout=0.2))[0]
        control.publish()
        assert [each.name for each in (await read).resources] == ["s:a"]


async def test_acknowledged_waits_for_clusters_and_endpoints(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    control.set_server(server("a", names=("smol",)))
    control.publish()
    assert not await control.acknowledged("a", 0.05), "no Envoy is connected"
    async with Client(address) as envoy:
        await envoy.ask(CDS)
        await envoy.take(await envoy.read())
        await envoy.ask(EDS, "s:a", "m:smol")
        await envoy.take(await envoy.read())
        assert await control.acknowledged("a", 5)
        assert not await control.acknowledged("unknown", 0.05)

        control.set_server(server("a", "/e.sock", names=("smol",)))
        waiting = asyncio.create_task(control.acknowledged("a", 5))
        response = await envoy.read()
        assert sorted(each.name for each in response.resources) == ["m:smol", "s:a"]
        assert not waiting.done()
        await envoy.take(response)
        assert await waiting


async def test_the_routes_know_the_largest_context_and_change_only_with_it(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    settings = InferenceSettings(
        ("127.0.0.1",), 1, TokenSettings("{}"), allow_anonymous=True, limits={"prompt.bytes_per_token": 10}
    )
    control.set_static([], settings, [])
    control.set_server(ServerEndpoints("a", (), (), 4, context=4096))
    control.publish()

    async def told(envoy: Client) -> Any:
        response = await envoy.read()
        await envoy.take(response)
        routes = envoy_api.message_class("envoy.config.route.v3.RouteConfiguration").FromString(
            response.resources[0].resource.value
        )
        known = routes.virtual_hosts[0].routes[0].metadata.filter_metadata["envoy.filters.http.lua"]
        return dict(known).get("most_prompt_bytes")

    async with Client(address) as envoy:
        await envoy.ask(RDS, "inference")
        assert await told(envoy) == 40960
        for number in range(20):
            control.set_server(ServerEndpoints(f"b{number}", (), (), 4, context=2048))
            control.remove_server(f"b{number - 1}")
        control.set_server(ServerEndpoints("c", (), (), 4, context=32768))
        assert await told(envoy) == 327680
        control.set_server(ServerEndpoints("d", (), (), 4))
        assert await told(envoy) is None
        control.remove_server("d")
        assert await told(envoy) == 327680
        control.remove_server("c")
        assert await told(envoy) == 40960
        control.set_server(ServerEndpoints("a", (), (), 4, context=8192))
        assert await told(envoy) == 81920


async def test_a_refusal_is_counted_with_envoys_words(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    control.set_server(server("a"))
    control.publish()
    async with Client(address) as envoy:
        await envoy.ask(CDS)
        await envoy.take(await envoy.read(), error="bad cluster")
        assert not await control.acknowledged("a", 0.1)
        assert control.stats.refused == {CDS: 1}
        assert control.stats.last_nack is not None
        assert (control.stats.last_nack.names, control.stats.last_nack.message) == (("s:a",), "bad cluster")


async def test_a_client_that_leaves_is_forgotten(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    control.publish()
    async with Client(address) as envoy:
        await envoy.ask(CDS)
        await envoy.read()
        assert control.stats.connected == 1
    async with asyncio.timeout(5):
        while control.stats.connected:
            await asyncio.sleep(0.01)


async def test_a_model_name_is_the_union_of_its_servers(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    control.set_server(server("b", "/b.sock", names=("smol",), connections=9))
    control.set_server(server("a", "/a.sock", names=("smol", "other"), connections=4))
    control.publish()
    async with Client(address) as envoy:
        await envoy.ask(EDS, "m:smol")
        assert paths((await envoy.read()).resources[0]) == [["/a.sock", "/b.sock"], ["held"]]
        control.remove_server("a")
        assert paths((await envoy.read()).resources[0]) == [["/b.sock"], ["held"]]


def paths(resource: Any) -> list[list[str]]:
    """Addresses by priority."""
    assignment = envoy_api.message_class("envoy.config.endpoint.v3.ClusterLoadAssignment").FromString(
        resource.resource.value
    )
    return [[place(each.endpoint.address) for each in group.lb_endpoints] for group in assignment.endpoints]


def place(address: Any) -> str:
    return address.pipe.path or address.envoy_internal_address.server_listener_name


async def test_a_change_costs_the_same_however_many_servers_exist(plane: tuple[ControlPlane, str]) -> None:
    control, address = plane
    for number in range(300):
        control.set_server(server(f"u{number}", names=(f"n{number}",)))
    control.publish()
    async with Client(address) as envoy:
        await envoy.ask(CDS)
        await envoy.take(await envoy.read())
        await envoy.ask(EDS, *(f"s:u{number}" for number in range(300)), *(f"m:n{number}" for number in range(300)))
        await envoy.take(await envoy.read())
        control.set_server(server("u7", "/e.sock", names=("n7",)))
        response = await envoy.read()
        assert sorted(each.name for each in response.resources) == ["m:n7", "s:u7"]
        assert response.ByteSize() < 1000
