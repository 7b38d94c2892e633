"""Models come from the download service and stay while a server uses them; health always answers."""

from __future__ import annotations

import pytest

from llamesh.v1 import gateway_pb2, server_pb2
from services.gateway import health
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


async def test_a_model_in_use_stays(mesh, ada) -> None:
    mesh.download.add("m1")
    mesh.controller.put(server_pb2.Server(server_uuid="srv-1", model_uuid="m1"))
    mesh.controller.put(server_pb2.Server(server_uuid="srv-2", model_uuid="other"))
    with refused("MODEL_IN_USE") as refusal:
        await mesh.gateway.DeleteModel(gateway_pb2.DeleteModelRequest(model_uuid="m1"), metadata=ada)
    assert refusal.metadata == {"modelUuid": "m1", "servers": "srv-1"}
    assert "m1" in mesh.download.models


def states(report: gateway_pb2.Health) -> dict[str, str]:
    found = {item.name: gateway_pb2.HealthState.Name(item.status)[13:] for item in report.components}
    return {"": gateway_pb2.HealthState.Name(report.status)[13:], **found}


async def test_health_needs_no_token_and_names_every_part(mesh) -> None:
    report = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    names = ("", "gateway", "contract", "download", "controller", "envoy", "database")
    assert states(report) == dict.fromkeys(names, "OK")
    assert report.version


async def test_health_says_which_part_is_down(mesh, stop_member, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH", -1.0)
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
    first = await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest())
    mesh.controller.envoys = 0
    assert await mesh.gateway.GetHealth(gateway_pb2.GetHealthRequest()) == first
