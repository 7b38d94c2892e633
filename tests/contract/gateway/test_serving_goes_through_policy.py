"""Serve, change, sleep, wake, stop: what the contract service refuses is never declared, what it allows is declared as asked."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2
from tests.contract.rich_status import refused


@pytest.fixture
def ada(as_caller):
    return as_caller("ada", "manage")


async def serve(mesh, ada, **more) -> server_pb2.Server:
    mesh.download.models.setdefault("abc123", model("abc123"))
    return await mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="abc123", **more), metadata=ada)


def model(model_uuid: str, name: str = "Qwen 2.5.gguf"):
    return model_pb2.Model(model_uuid=model_uuid, name=name)


async def test_the_call_of_the_reference_deployment_declares_a_server(mesh, ada) -> None:
    server = await serve(mesh, ada, model_name="Qwen.gguf", replicas=2, runtime_params="--ctx-size 2048")
    assert (server.server_uuid, server.state) == ("srv-1", server_pb2.SERVER_STATE_STARTING)
    check = mesh.contract.checks[0]
    assert (check.model_uuid, check.replicas, check.runtime_params) == ("abc123", 2, "--ctx-size 2048")
    assert mesh.contract.callers == ["ada"]
    declared = mesh.controller.declared[0]
    assert declared.owner == "ada"
    assert declared.engine_memory_bytes == 123
    assert declared.request_id == ""
    assert declared.spec == server_pb2.ServerSpec(
        model_uuid="abc123",
        model_name="Qwen.gguf",
        replicas=2,
        parameters=server_pb2.RuntimeParameters(ctx_size=2048),
        namespace="default",
    )


async def test_a_server_without_a_namespace_is_declared_and_checked_in_default(mesh, ada) -> None:
    server = await serve(mesh, ada)
    assert server.spec.namespace == "default"
    assert mesh.contract.checks[-1].namespace == "default"


async def test_the_contract_service_is_told_that_a_server_will_be_declared(mesh, ada) -> None:
    server = await serve(mesh, ada)
    request = gateway_pb2.ScaleServerRequest(server_uuid=server.server_uuid, replicas=2)
    await mesh.gateway.ScaleServer(request, metadata=ada)
    assert [check.serve for check in mesh.contract.checks] == [True, True]


async def test_the_name_defaults_to_the_models_in_a_form_that_requests_can_use(mesh, ada) -> None:
    server = await serve(mesh, ada)
    assert server.model_name == "Qwen-2.5.gguf"
    assert mesh.controller.declared[0].spec.replicas == 1
    assert mesh.download.read == ["abc123"], "the check has read it; read once more when the server is written"


async def test_an_alias_becomes_the_server_s_name(mesh, ada) -> None:
    alias = server_pb2.RuntimeParameters(alias="chat", ctx_size=2048)
    server = await serve(mesh, ada, parameters=alias)
    assert server.model_name == "chat"
    assert mesh.controller.declared[0].spec.parameters == server_pb2.RuntimeParameters(ctx_size=2048)
    assert (await serve(mesh, ada, parameters=alias, model_name="chat")).model_name == "chat"
    with refused("INVALID_FIELD") as refusal:
        await serve(mesh, ada, parameters=alias, model_name="other")
    assert refusal.fields == ["model_name"]
    assert "--alias says 'chat'" in refusal.message


async def test_an_alias_in_changed_parameters_renames_the_server(mesh, ada) -> None:
    server = await serve(mesh, ada)
    changes = server_pb2.ServerChanges(parameters=server_pb2.RuntimeParameters(alias="chat", parallel=2))
    request = gateway_pb2.UpdateServerRequest(server_uuid=server.server_uuid, changes=changes)
    await mesh.gateway.UpdateServer(request, metadata=ada)
    changed = mesh.controller.updates[-1].changes
    assert changed.model_name == "chat"
    assert changed.parameters == server_pb2.RuntimeParameters(parallel=2)


async def test_everything_that_can_be_wished_reaches_the_controller(mesh, ada) -> None:
    await serve(
        mesh,
        ada,
        parameters=server_pb2.RuntimeParameters(parallel=3),
        idle_sleep=Duration(seconds=300),
        wake_budget=Duration(seconds=30),
        namespace="inference",
        metered=True,
    )
    spec = mesh.controller.declared[0].spec
    assert (spec.parameters.parallel, spec.idle_sleep.seconds, spec.wake_budget.seconds) == (3, 300, 30)
    assert (spec.namespace, spec.metered) == ("inference", True)
    assert mesh.contract.checks[0].namespace == "inference"


async def test_a_refusal_carries_the_reason_the_numbers_and_the_decision(mesh, ada) -> None:
    mesh.contract.refusals = [
        contract_pb2.Refusal(
            reason="DOES_NOT_FIT", message="needs 9 of 8 bytes", metadata={"neededBytes": "9", "freeBytes": "8"}
        ),
        contract_pb2.Refusal(reason="TOO_MANY_REPLICAS", message="9 of 5 replicas"),
    ]
    with refused("DOES_NOT_FIT") as refusal:
        await serve(mesh, ada)
    assert refusal.message == "needs 9 of 8 bytes; 9 of 5 replicas"
    assert refusal.metadata == {"neededBytes": "9", "freeBytes": "8", "decisionId": "dec_1"}
    assert refusal.remedy.startswith("Lower ctx_size")
    assert mesh.controller.declared == []


async def test_errors_of_other_members_pass_with_their_reason(mesh, ada) -> None:
    with refused("PARAMETER_UNKNOWN") as refusal:
        await serve(mesh, ada, runtime_params="--bad")
    assert refusal.metadata == {"parameter": "--bad"}
    mesh.download.models.clear()
    with refused("MODEL_NOT_FOUND"):
        await mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="gone"), metadata=ada)
    assert mesh.controller.declared == []


async def test_bounds_of_the_spec_are_checked_with_the_callers_field_names(mesh, ada) -> None:
    with refused("INVALID_FIELD") as refusal:
        await serve(mesh, ada, idle_sleep=Duration(nanos=5))
    assert refusal.fields == ["idle_sleep"]
    assert mesh.controller.declared == []


async def test_a_name_that_looks_like_a_servers_id_is_refused(mesh, ada) -> None:
    with refused("INVALID_FIELD") as refusal:
        await serve(mesh, ada, model_name="0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10")
    assert refusal.fields == ["model_name"]
    assert mesh.controller.declared == []


async def test_a_repeated_request_id_answers_with_the_first_server(mesh, ada, as_caller) -> None:
    first = await serve(mesh, ada, request_id="r1")
    mesh.contract.refusals = [contract_pb2.Refusal(reason="DOES_NOT_FIT", message="full now")]
    assert await serve(mesh, ada, request_id="r1") == first
    mesh.contract.refusals = []
    other = await serve(mesh, as_caller("bob", "manage"), request_id="r1")
    assert other.server_uuid != first.server_uuid
    assert [(item.owner, item.request_id) for item in mesh.controller.declared] == [("ada", "r1"), ("bob", "r1")]


async def test_a_later_user_of_the_same_name_inherits_no_request_id(mesh, as_caller) -> None:
    root = as_caller("admin", "admin")
    first = await serve(mesh, as_caller("ada", "manage"), request_id="r1", replicas=1)
    await mesh.gateway.DeleteUser(gateway_pb2.DeleteUserRequest(username="ada"), metadata=root)
    again = gateway_pb2.CreateUserRequest(username="ada", password="correct horse")
    await mesh.gateway.CreateUser(again, metadata=root)
    later = await serve(mesh, as_caller("ada", "manage"), request_id="r1", replicas=2)
    assert later.server_uuid != first.server_uuid
    assert later.owner == "ada"


async def test_a_change_is_checked_as_the_server_would_be(mesh, ada) -> None:
    server = await serve(mesh, ada, replicas=2, runtime_params="--ctx-size 2048", namespace="inference")
    await mesh.gateway.ScaleServer(
        gateway_pb2.ScaleServerRequest(server_uuid=server.server_uuid, replicas=4), metadata=ada
    )
    assert mesh.contract.checks[-1] == contract_pb2.CheckRequest(
        model_uuid="abc123",
        replicas=4,
        parameters=server_pb2.RuntimeParameters(ctx_size=2048),
        namespace="inference",
        replaces_server_uuid=server.server_uuid,
        serve=True,
    )
    assert mesh.controller.updates[-1].changes == server_pb2.ServerChanges(replicas=4)
    assert mesh.controller.updates[-1].engine_memory_bytes == 123


async def test_changed_flags_reach_the_controller_typed(mesh, ada) -> None:
    server = await serve(mesh, ada, runtime_params="--ctx-size 2048")
    changes = server_pb2.ServerChanges(runtime_params="--ctx-size 4096")
    request = gateway_pb2.UpdateServerRequest(server_uuid=server.server_uuid, changes=changes)
    await mesh.gateway.UpdateServer(request, metadata=ada)
    assert mesh.controller.updates[-1].changes == server_pb2.ServerChanges(
        parameters=server_pb2.RuntimeParameters(ctx_size=4096)
    )
    request.changes.runtime_params = ""
    await mesh.gateway.UpdateServer(request, metadata=ada)
    assert mesh.controller.updates[-1].changes.HasField("parameters")
    assert not mesh.controller.updates[-1].changes.parameters.HasField("ctx_size")


async def test_refused_changes_change_nothing(mesh, ada) -> None:
    server = await serve(mesh, ada)
    wrong = gateway_pb2.UpdateServerRequest(
        server_uuid=server.server_uuid, changes=server_pb2.ServerChanges(idle_sleep=Duration(seconds=-5))
    )
    with refused("INVALID_FIELD"):
        await mesh.gateway.UpdateServer(wrong, metadata=ada)
    stale = gateway_pb2.UpdateServerRequest(
        server_uuid=server.server_uuid, changes=server_pb2.ServerChanges(metered=True), etag="7"
    )
    with refused("ETAG_MISMATCH"):
        await mesh.gateway.UpdateServer(stale, metadata=ada)
    mesh.contract.refusals = [contract_pb2.Refusal(reason="TOO_MANY_REPLICAS", message="no")]
    with refused("TOO_MANY_REPLICAS") as refusal:
        await mesh.gateway.ScaleServer(
            gateway_pb2.ScaleServerRequest(server_uuid=server.server_uuid, replicas=9), metadata=ada
        )
    assert refusal.fields == ["replicas"]
    assert mesh.controller.updates == []


async def test_sleep_wake_list_and_stop(mesh, ada) -> None:
    server = await serve(mesh, ada)
    key = server.server_uuid
    asleep = await mesh.gateway.SleepServer(gateway_pb2.SleepServerRequest(server_uuid=key), metadata=ada)
    assert asleep.state == server_pb2.SERVER_STATE_SLEEPING
    awake = await mesh.gateway.WakeServer(gateway_pb2.WakeServerRequest(server_uuid=key), metadata=ada)
    assert awake.state == server_pb2.SERVER_STATE_STARTING
    page = await mesh.gateway.ListServers(gateway_pb2.ListServersRequest(page_token="t"), metadata=ada)
    assert ([item.server_uuid for item in page.servers], page.next_page_token) == ([key], "t")
    stopped = await mesh.gateway.Stop(gateway_pb2.StopRequest(server_uuid=key), metadata=ada)
    assert stopped.state == server_pb2.SERVER_STATE_STOPPED
    for call, request in (
        (mesh.gateway.GetServer, gateway_pb2.GetServerRequest(server_uuid=key)),
        (mesh.gateway.Stop, gateway_pb2.StopRequest(server_uuid=key)),
        (mesh.gateway.SleepServer, gateway_pb2.SleepServerRequest(server_uuid=key)),
        (mesh.gateway.ScaleServer, gateway_pb2.ScaleServerRequest(server_uuid=key, replicas=1)),
    ):
        with refused("SERVER_NOT_FOUND"):
            await call(request, metadata=ada)


async def test_stopping_may_take_longer_than_the_drain_of_its_engines(mesh, ada) -> None:
    server = await serve(mesh, ada)
    await mesh.gateway.Stop(gateway_pb2.StopRequest(server_uuid=server.server_uuid), metadata=ada)
    drain = mesh.settings.drain_seconds
    assert drain + 9 < mesh.controller.removal_seconds < drain + 11


async def test_a_log_ends_with_its_lines_or_is_followed_until_the_reader_leaves(mesh, ada, until) -> None:
    server = await serve(mesh, ada)
    request = gateway_pb2.ReadServerLogRequest(server_uuid=server.server_uuid, tail_lines=1)
    parts = [list(part.lines) async for part in mesh.gateway.ReadServerLog(request, metadata=ada)]
    assert parts == [["two"]]
    request.follow = True
    following = mesh.gateway.ReadServerLog(request, metadata=ada)
    assert list((await anext(aiter(following))).lines) == ["two"]
    assert mesh.controller.log_readers == 1
    following.cancel()
    await until(lambda: mesh.controller.log_readers == 0)
    with refused("SERVER_NOT_FOUND"):
        async for _ in mesh.gateway.ReadServerLog(gateway_pb2.ReadServerLogRequest(server_uuid="x"), metadata=ada):
            pass


async def test_a_controller_that_restarts_is_waited_for(mesh, ada, start_member, stop_member) -> None:
    server = await serve(mesh, ada)
    await stop_member(mesh.members["controller"])
    asked = asyncio.ensure_future(
        mesh.gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid=server.server_uuid), metadata=ada)
    )
    await asyncio.sleep(0.1)
    assert not asked.done()
    await start_member(mesh.settings, "controller", mesh.controller.register)
    assert (await asked).server_uuid == server.server_uuid
