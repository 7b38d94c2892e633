"""Where engines run is checked before it is declared or changed, and a refusal names the field of the request."""

from __future__ import annotations

import pytest

from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2
from llamesh.v1.server_pb2 import Placement
from tests.contract.rich_status import refused

PLACED = Placement(node_selector={"zone": "a"}, image="cuda:12")


@pytest.fixture
def ada(as_caller):
    return as_caller("ada", "manage")


async def serve(mesh, ada, **more) -> server_pb2.Server:
    mesh.download.models.setdefault("abc123", model_pb2.Model(model_uuid="abc123", name="m.gguf"))
    return await mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="abc123", **more), metadata=ada)


async def change(mesh, ada, server: server_pb2.Server, **changes) -> server_pb2.Server:
    request = gateway_pb2.UpdateServerRequest(
        server_uuid=server.server_uuid, changes=server_pb2.ServerChanges(**changes)
    )
    return await mesh.gateway.UpdateServer(request, metadata=ada)


async def test_a_placement_is_checked_and_declared(mesh, ada) -> None:
    await serve(mesh, ada, placement=PLACED)
    assert mesh.contract.checks[0].placement == PLACED
    assert mesh.controller.declared[0].spec.placement == PLACED


async def test_an_empty_placement_is_none(mesh, ada) -> None:
    await serve(mesh, ada, placement=Placement())
    assert not mesh.controller.declared[0].spec.HasField("placement")


async def test_a_change_is_checked_with_the_placement_that_the_server_would_have(mesh, ada) -> None:
    server = await serve(mesh, ada, placement=PLACED)
    await change(mesh, ada, server, replicas=2)
    assert mesh.contract.checks[-1].placement == PLACED
    await change(mesh, ada, server, placement=Placement(image="cuda:13"))
    assert mesh.contract.checks[-1].placement == Placement(image="cuda:13")
    assert mesh.controller.updates[-1].changes.placement == Placement(image="cuda:13")
    await change(mesh, ada, server, placement=Placement())
    assert not mesh.contract.checks[-1].placement.ListFields()
    assert mesh.controller.updates[-1].changes.HasField("placement")


async def test_a_refusal_names_the_field_of_the_request(mesh, ada) -> None:
    mesh.contract.refusals = [
        contract_pb2.Refusal(
            reason="PLACEMENT_NOT_ALLOWED",
            message="placement.image: 'cuda:12' is not one of LLAMESH_ENGINE_IMAGES, which are engine:1",
            metadata={"field": "placement.image", "value": "cuda:12"},
        )
    ]
    with refused("PLACEMENT_NOT_ALLOWED") as refusal:
        await serve(mesh, ada, placement=PLACED)
    assert refusal.fields == ["placement.image"]
    assert refusal.metadata["value"] == "cuda:12"
    assert mesh.controller.declared == []


async def test_a_malformed_placement_is_refused_before_anything_is_asked(mesh, ada) -> None:
    with refused("INVALID_FIELD") as refusal:
        await serve(mesh, ada, placement=Placement(priority_class="High"))
    assert refusal.fields == ["placement.priority_class"]
    assert mesh.contract.checks == []
