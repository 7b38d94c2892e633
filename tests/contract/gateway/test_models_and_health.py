"""Models come from the download service and stay while a server uses them; health always answers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from llamesh.kit.health_names import OF_MESH
from llamesh.v1 import download_pb2, gateway_pb2
from services.gateway import health, mesh_health
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused


@pytest.fixture
def ada(as_caller):
    return as_caller("ada", "manage")


async def test_models_are_listed_read_and_removed(mesh, ada) -> None:
    mesh.download.add("m1")
    page = await mesh.gateway.ListModels(gateway_pb2.ListModelsRequest(page_size=7, page_token="t"), metadata=ada)
    assert ([item.model_uuid for item in page.models], page.next_page_token) == (["m1"], "7t")
    assert (await mesh.gateway.GetModel(gateway_pb2.GetModelRequest(model_uuid="m1"), metadata=ada)).name == "m.gguf"
    gone = await mesh.gateway.DeleteModel(gateway_pb2.DeleteModelRequest(model_uuid="m1"), metadata=ada)
    assert gone.model_uuid == "m1"
    with refused("MODEL_NOT_FOUND"):
        await mesh.gateway.GetModel(gateway_pb2.GetModelRequest(model_uuid="m1"), metadata=ada)


async def test_a_search_for_models_reaches_the_catalogue_whole(mesh, ada) -> None:
    fields = {"page_size": 3, "page_token": "t", "query": "q", "architecture": "a", "quantisation": "z", "tag": "g"}
    chosen = {"source_kind": "MODEL_SOURCE_KIND_HUB", "order_by": "MODEL_ORDER_NAME", "descending": True}
    asked = gateway_pb2.ListModelsRequest(**fields, **chosen)
    assert len(asked.ListFields()) == len(asked.DESCRIPTOR.fields)
    await mesh.gateway.ListModels(asked, metadata=ada)
    assert mesh.download.listed == [download_pb2.ListCatalogueModelsRequest(**fields, **chosen)]


async def test_a_refusal_to_delete_a_model_arrives_as_it_was_said(mesh, ada) -> None:
    mesh.download.add("m1")
    mesh.download.used_by["m1"] = "srv-1"
    with refused("MODEL_IN_USE") as refusal:
        await mesh.gateway.DeleteModel(gateway_pb2.DeleteModelRequest(model_uuid="m1"), metadata=ada)
    assert refusal.metadata == {"modelUuid": "m1", "servers": "srv-1"}
    assert "m1" in mesh.download.models


def states(report: gateway_pb2.Health) -> dict[str, str]:
    found = {item.name: gateway_pb2.HealthState.Name(item.status)[13:] for item in report.components}
    return {"": gateway_pb2.HealthState.Name(report.status)[13:], **found}


async def test_health_needs_no_token_and_names_every_part(mesh) -> None:
    report = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    names = ("", "gateway", "contract", "download", "controller", "envoy", "store", "database")
    assert states(report) == dict.fromkeys(names, "OK")
    assert report.version


async def test_health_says_which_part_is_down(mesh, stop_member, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
    assert states(await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()))[""] == "OK"
    await stop_member(mesh.members["download"])
    mesh.controller.envoys = 0
    report = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    assert states(report) == {
        "": "DOWN",
        "gateway": "OK",
        "contract": "OK",
        "download": "DOWN",
        "controller": "OK",
        "envoy": "DOWN",
        "database": "OK",
    }
    await stop_member(mesh.members["controller"])
    found = states(await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()))
    assert (found["controller"], found["envoy"]) == ("DOWN", "UNSPECIFIED")


async def test_a_part_that_has_not_answered_since_the_start_is_starting_for_a_while(
    start_mesh, one_settings, connect, monkeypatch
) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
    mesh = await start_mesh(one_settings, without=("controller", "download"))
    report = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    found = states(report)
    assert (found["controller"], found["download"], found["contract"]) == ("STARTING", "STARTING", "OK")
    assert found[""] == "STARTING"
    assert not [part.message for part in report.components if "down" in part.message]
    assert await Standard(connect(mesh.settings, "gateway")).check() == NOT_SERVING
    monkeypatch.setattr(health, "START_SECONDS", 0.0)
    found = states(await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()))
    assert (found["controller"], found["download"], found[""]) == ("DOWN", "DOWN", "DOWN")


@pytest.mark.parametrize(
    ("parts", "state", "words"),
    [
        ({"store": True, "store.credentials": True}, "OK", ""),
        ({"store": False, "store.credentials": True}, "DEGRADED", "it is stopped or cut off, MINIO_ENDPOINT is wrong"),
        ({"store": False, "store.credentials": False}, "DEGRADED", "refuses MINIO_ACCESS_KEY"),
    ],
)
async def test_health_says_how_the_object_store_is(mesh, monkeypatch, parts, state, words) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
    for name, well in parts.items():
        mesh.members["download"].show_part(name, well)
    report = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    assert (states(report)["store"], states(report)[""]) == (state, state)
    assert words in next(part.message for part in report.components if part.name == "store")


async def test_health_answers_many_with_one_look(mesh, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH", 10 * PATIENCE)
    first = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    mesh.controller.envoys = 0
    assert await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()) == first


async def test_a_store_that_was_never_checked_is_not_ok(start_mesh, start_member, one_settings) -> None:
    mesh = await start_mesh(one_settings, without=("download",))
    assert "store" not in states(await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()))
    member = await start_member(one_settings, "download", mesh.download.register)

    async def told(state: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while states(await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())).get("store") != state:
                await asyncio.sleep(0.05)

    await told("DEGRADED")
    for part in ("store", "store.credentials"):
        member.show_part(part, True)
    await told("OK")


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Standard:
    """A client of grpc.health.v1, as Envoy asks for one at the front door."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        request, response = health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
        self._check = channel.unary_unary(f"/{OF_MESH}/Check", request, response)
        self._watch = channel.unary_stream(f"/{OF_MESH}/Watch", request, response)

    async def check(self, name: str = "") -> int:
        return (await self._check(health_pb2.HealthCheckRequest(service=name))).status

    def watch(self, name: str = "") -> Any:
        return self._watch(health_pb2.HealthCheckRequest(service=name))


async def test_the_standard_protocol_says_how_the_mesh_is(mesh, connect, stop_member, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
    standard = Standard(connect(mesh.settings, "gateway"))
    for name in ("", "gateway", "store", "llamesh.v1.DownloadService"):
        assert await standard.check(name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await standard.check("nobody")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert "llamesh.v1.GatewayService" in error.value.details()
    mesh.members["download"].show_part("store", False)
    assert (await standard.check("store"), await standard.check()) == (NOT_SERVING, SERVING)
    await stop_member(mesh.members["download"])
    assert await standard.check("llamesh.v1.DownloadService") == NOT_SERVING
    assert await standard.check() == NOT_SERVING


async def test_a_watch_tells_of_changes_and_ends_with_the_gateway(mesh, connect, stop_member, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
    standard = Standard(connect(mesh.settings, "gateway"))
    watch = standard.watch()
    async with asyncio.timeout(PATIENCE):
        assert (await watch.read()).status == SERVING
        mesh.controller.envoys = 0
        assert (await watch.read()).status == NOT_SERVING
        mesh.controller.envoys = 1
        assert (await watch.read()).status == SERVING
        unknown = standard.watch("nobody")
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        stopping = asyncio.create_task(stop_member(mesh.members["gateway"]))
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() == grpc.aio.EOF
        await stopping


async def test_watches_of_health_are_bounded(mesh, connect, monkeypatch) -> None:
    monkeypatch.setattr(mesh_health, "MAX_WATCHES", 2)
    standard = Standard(connect(mesh.settings, "gateway"))
    watches = [standard.watch() for _ in range(2)]
    for watch in watches:
        await watch.read()
    with refused("TOO_MANY_WATCHES"):
        await standard.watch().read()
    watches[0].cancel()
    async with asyncio.timeout(PATIENCE):
        while True:
            again = standard.watch()
            try:
                assert (await again.read()).status == SERVING
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
    for watch in (*watches, again):
        watch.cancel()
