"""A server whose model is deleted while the server is declared or changed is withdrawn, and its caller is told."""

from __future__ import annotations

import pytest

from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2
from tests.contract.rich_status import refused


@pytest.fixture
def ada(as_caller):
    return as_caller("ada", "manage")


def deleted_after_the_check(mesh, model_uuid: str) -> None:
    async def delete(_: contract_pb2.CheckRequest) -> None:
        # The fake reads the model after this call.
        model = mesh.download.models.pop(model_uuid)
        mesh.contract.models = {**mesh.download.models, model_uuid: model}

    mesh.contract.during_check = delete


async def serve(mesh, ada, **more) -> server_pb2.Server:
    mesh.download.models.setdefault("m1", model_pb2.Model(model_uuid="m1", name="m.gguf"))
    return await mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="m1", **more), metadata=ada)


async def test_a_server_whose_model_went_after_the_check_is_withdrawn(mesh, ada) -> None:
    deleted_after_the_check(mesh, "m1")
    with refused("MODEL_NOT_FOUND"):
        await serve(mesh, ada)
    assert len(mesh.controller.declared) == 1
    assert mesh.controller.servers == {}


async def test_a_change_that_names_a_model_that_went_is_undone(mesh, ada) -> None:
    server = await serve(mesh, ada, replicas=2)
    mesh.download.models["draft"] = model_pb2.Model(model_uuid="draft", name="d.gguf")
    deleted_after_the_check(mesh, "draft")
    parameters = server_pb2.RuntimeParameters(model_draft="draft")
    request = gateway_pb2.UpdateServerRequest(
        server_uuid=server.server_uuid, changes=server_pb2.ServerChanges(parameters=parameters, replicas=3)
    )
    with refused("MODEL_NOT_FOUND"):
        await mesh.gateway.UpdateServer(request, metadata=ada)
    after = mesh.controller.servers[server.server_uuid].spec
    assert (after.parameters.model_draft, after.replicas) == ("", 2)


async def test_a_repetition_withdraws_what_a_gateway_that_died_has_left(mesh, ada) -> None:
    await serve(mesh, ada, request_id="r1")
    del mesh.download.models["m1"]
    request = gateway_pb2.ServeRequest(model_uuid="m1", request_id="r1")
    with refused("MODEL_NOT_FOUND"):
        await mesh.gateway.Serve(request, metadata=ada)
    assert mesh.controller.servers == {}


async def test_a_repetition_needs_no_download_service(mesh, ada, stop_member, monkeypatch) -> None:
    first = await serve(mesh, ada, request_id="r1")
    monkeypatch.setattr("services.gateway.declarations.READ_SECONDS", 0.3)
    await stop_member(mesh.members["download"])
    request = gateway_pb2.ServeRequest(model_uuid="m1", request_id="r1")
    assert await mesh.gateway.Serve(request, metadata=ada) == first


@pytest.mark.parametrize("request_id", ["r1", ""])
async def test_a_server_that_another_call_may_have_told_of_stays_if_its_models_cannot_be_read(
    mesh, ada, stop_member, monkeypatch, request_id: str
) -> None:
    monkeypatch.setattr("services.gateway.declarations.READ_SECONDS", 0.3)

    async def stop(_: contract_pb2.CheckRequest) -> None:
        # Both calls with one id have found no server of an earlier request by now.
        mesh.contract.models = dict(mesh.download.models)
        await stop_member(mesh.members["download"])

    mesh.contract.during_check = stop
    with refused("COMPONENT_UNAVAILABLE"):
        await serve(mesh, ada, request_id=request_id)
    assert len(mesh.controller.declared) == 1
    assert list(mesh.controller.servers) == (["srv-1"] if request_id else [])
