"""Changes that are allowed one by one are checked together; a caller's conditions are kept; a request_id stands for one request."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2
from services.gateway.servers import MAX_ATTEMPTS
from services.gateway.service import run
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused


@pytest.fixture
def ada(as_caller):
    return as_caller("ada", "manage")


async def serve(mesh, ada, **more) -> server_pb2.Server:
    mesh.download.models.setdefault("abc123", model_pb2.Model(model_uuid="abc123", name="m.gguf"))
    return await mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="abc123", **more), metadata=ada)


def more_replicas(server: server_pb2.Server, replicas: int, **more) -> gateway_pb2.ScaleServerRequest:
    return gateway_pb2.ScaleServerRequest(server_uuid=server.server_uuid, replicas=replicas, **more)


def more_context(server: server_pb2.Server, **more) -> gateway_pb2.UpdateServerRequest:
    changes = server_pb2.ServerChanges(parameters=server_pb2.RuntimeParameters(ctx_size=8192))
    return gateway_pb2.UpdateServerRequest(server_uuid=server.server_uuid, changes=changes, **more)


async def test_two_changes_that_are_allowed_one_by_one_are_checked_together(mesh, ada) -> None:
    server = await serve(mesh, ada)
    both = asyncio.Barrier(2)

    async def refuse_the_sum(check: contract_pb2.CheckRequest) -> None:
        mesh.contract.refusals = []
        if check.replicas == 4 and check.parameters.ctx_size == 8192:
            mesh.contract.refusals = [contract_pb2.Refusal(reason="DOES_NOT_FIT", message="not both")]
        elif both.n_waiting or not both.broken:
            # Both are checked before either is made.
            async with asyncio.timeout(PATIENCE):
                await both.wait()

    mesh.contract.during_check = refuse_the_sum
    answers = await asyncio.gather(
        mesh.gateway.ScaleServer(more_replicas(server, 4), metadata=ada),
        mesh.gateway.UpdateServer(more_context(server), metadata=ada),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refusals) == 1, answers
    with refused("DOES_NOT_FIT"):
        raise refusals[0]
    now = await mesh.gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid=server.server_uuid), metadata=ada)
    assert (now.spec.replicas, now.spec.parameters.ctx_size) in ((4, 0), (1, 8192))


async def test_a_change_carries_the_etag_that_it_was_checked_with(mesh, ada) -> None:
    server = await serve(mesh, ada)
    await mesh.gateway.ScaleServer(more_replicas(server, 2), metadata=ada)
    await mesh.gateway.UpdateServer(more_context(server), metadata=ada)
    assert [update.etag for update in mesh.controller.updates] == ["1", "2"]


async def test_a_change_is_refused_if_others_keep_changing_the_server(mesh, ada) -> None:
    server = await serve(mesh, ada)
    mesh.contract.checks.clear()

    async def change(_: contract_pb2.CheckRequest) -> None:
        present = mesh.controller.servers[server.server_uuid]
        present.etag = str(int(present.etag) + 1)

    mesh.contract.during_check = change
    with refused("ETAG_MISMATCH"):
        await mesh.gateway.ScaleServer(more_replicas(server, 2), metadata=ada)
    assert len(mesh.contract.checks) == MAX_ATTEMPTS
    assert not mesh.controller.updates


async def test_a_callers_etag_is_compared_once_and_never_retried(mesh, ada) -> None:
    server = await serve(mesh, ada)
    mesh.contract.checks.clear()
    with refused("ETAG_MISMATCH") as refusal:
        await mesh.gateway.ScaleServer(more_replicas(server, 2, etag="9"), metadata=ada)
    assert refusal.metadata == {"etag": "1"}
    assert not mesh.contract.checks
    with refused("ETAG_MISMATCH"):
        await mesh.gateway.Stop(gateway_pb2.StopRequest(server_uuid=server.server_uuid, etag="9"), metadata=ada)

    async def change(_: contract_pb2.CheckRequest) -> None:
        mesh.controller.servers[server.server_uuid].etag = "2"

    mesh.contract.during_check = change
    with refused("ETAG_MISMATCH"):
        await mesh.gateway.UpdateServer(more_context(server, etag="1"), metadata=ada)
    assert len(mesh.contract.checks) == 1
    assert not mesh.controller.updates


@pytest.mark.parametrize("header", ['"1"', "1", ' "1" ', "*"])
async def test_if_match_is_met_by_the_present_etag(mesh, ada, header: str) -> None:
    server = await serve(mesh, ada)
    metadata = (*ada, ("if-match", header))
    assert (await mesh.gateway.ScaleServer(more_replicas(server, 2), metadata=metadata)).spec.replicas == 2
    metadata = (*ada, ("if-match", header.replace("1", "2")))
    await mesh.gateway.UpdateServer(more_context(server), metadata=metadata)
    metadata = (*ada, ("if-match", header.replace("1", "3")))
    await mesh.gateway.Stop(gateway_pb2.StopRequest(server_uuid=server.server_uuid), metadata=metadata)


@pytest.mark.parametrize(
    ("header", "reason", "fields"),
    [
        ('"9"', "ETAG_MISMATCH", []),
        ("9", "ETAG_MISMATCH", []),
        ('""', "ETAG_MISMATCH", []),
        ('W/"1"', "ETAG_MISMATCH", []),
        ('"1", "2"', "INVALID_FIELD", ["If-Match"]),
        ('"1', "INVALID_FIELD", ["If-Match"]),
        ("", "INVALID_FIELD", ["If-Match"]),
        ("1 2", "INVALID_FIELD", ["If-Match"]),
    ],
)
async def test_if_match_that_is_not_met_or_not_understood_changes_nothing(mesh, ada, header, reason, fields) -> None:
    server = await serve(mesh, ada)
    key = server.server_uuid
    metadata = (*ada, ("if-match", header))
    for call, request in (
        (mesh.gateway.ScaleServer, more_replicas(server, 2)),
        (mesh.gateway.UpdateServer, more_context(server)),
        (mesh.gateway.Stop, gateway_pb2.StopRequest(server_uuid=key)),
    ):
        with refused(reason) as refusal:
            await call(request, metadata=metadata)
        assert refusal.fields == fields
    assert not mesh.controller.updates
    assert key in mesh.controller.servers


async def test_if_match_and_etag_may_not_differ(mesh, ada) -> None:
    server = await serve(mesh, ada)
    with refused("INVALID_FIELD") as refusal:
        request = more_replicas(server, 2, etag="1")
        await mesh.gateway.ScaleServer(request, metadata=(*ada, ("if-match", '"2"')))
    assert refusal.fields == ["etag"]


async def test_a_request_id_stands_for_one_request(mesh, ada) -> None:
    first = await serve(mesh, ada, request_id="r1", runtime_params="--ctx-size 2048")
    assert await serve(mesh, ada, request_id="r1", runtime_params="--ctx-size 2048", replicas=1) == first
    assert await serve(mesh, ada, request_id="r1", runtime_params="--ctx-size 2048", namespace="default") == first
    for other in (
        {"runtime_params": "--ctx-size 4096"},
        {"runtime_params": "--ctx-size 2048", "replicas": 2},
        {"runtime_params": "--ctx-size 2048", "metered": True},
        {},
    ):
        with refused("REQUEST_ID_REUSED"):
            await serve(mesh, ada, request_id="r1", **other)
    assert len(mesh.controller.servers) == 1


async def test_many_repetitions_of_a_server_that_is_gone_declare_it_once(mesh, ada) -> None:
    server = await serve(mesh, ada, request_id="r1")
    del mesh.controller.servers[server.server_uuid]
    mesh.controller.declared.clear()
    again = await asyncio.gather(*(serve(mesh, ada, request_id="r1") for _ in range(20)))
    assert len({answer.server_uuid for answer in again}) == 1
    assert len(mesh.controller.servers) == 1


async def test_a_repetition_is_known_to_a_gateway_that_has_restarted(mesh, ada, start_main, stop_member) -> None:
    first = await serve(mesh, ada, request_id="r1")
    # The first server took the memory: the check would refuse the second.
    mesh.contract.refusals = [contract_pb2.Refusal(reason="DOES_NOT_FIT", message="full now")]
    await stop_member(mesh.members["gateway"])
    mesh.members["gateway"] = await start_main(mesh.settings, "gateway", run)
    request = gateway_pb2.ServeRequest(model_uuid="abc123", request_id="r1")
    again = await mesh.gateway.Serve(request, metadata=ada, wait_for_ready=True)
    assert again.server_uuid == first.server_uuid
