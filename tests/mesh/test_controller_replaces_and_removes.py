"""Changes reach running servers without a failed request: more replicas, other parameters, another name, the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from engine.sentence import SENTENCE
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters, Server
from tests.mesh.controlled import DEADLINE, READY, ControlledMesh, controlled_mesh, kill, until


@pytest.fixture
async def mesh() -> AsyncIterator[ControlledMesh]:
    async with controlled_mesh() as running:
        yield running


async def remove(mesh: ControlledMesh, server: Server) -> Server:
    request = pb.RemoveServerRequest(server_uuid=server.server_uuid)
    last: Server = await mesh.control.RemoveServer(request, timeout=DEADLINE)
    return last


@contextlib.asynccontextmanager
async def asking(mesh: ControlledMesh) -> AsyncIterator[list[tuple[int, str]]]:
    """Requests one after the other, on two lines, for the time of a block; each with its status and text."""
    answers: list[tuple[int, str]] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            status, body = await mesh.chat()
            answers.append((status, str(body.get("error") or body["choices"][0]["message"]["content"])))

    tasks = [asyncio.create_task(ask()) for _ in range(2)]
    try:
        yield answers
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_other_parameters_come_without_a_failed_request(mesh: ControlledMesh) -> None:
    server = await mesh.serve(replicas=2)
    before = mesh.engine_pids()
    async with asking(mesh) as answers:
        await mesh.change(server, parameters=RuntimeParameters(ctx_size=4096, warmup=False))

        async def replaced() -> bool:
            pids = mesh.engine_pids()
            return len(pids) == 2 and not set(pids) & set(before)

        await until(replaced, "both engines to be replaced")
    assert set(answers) == {(200, SENTENCE)}
    state = await mesh.until_state(server.server_uuid, READY)
    assert (state.generation, state.observed_generation, state.ready_replicas) == (2, 2, 2)
    assert mesh.starts() == 4


async def test_parameters_that_do_not_work_leave_the_old_engine_answering(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    before = mesh.engine_pids()
    # llama.cpp refuses a quantised cache of values without flash attention.
    impossible = RuntimeParameters(cache_type_v=server_pb2.CACHE_TYPE_Q4_0, flash_attn=server_pb2.SWITCH_OFF)
    await mesh.change(server, parameters=impossible)
    state = await mesh.until_state(server.server_uuid, server_pb2.SERVER_STATE_DEGRADED)
    assert state.conditions[0].status == server_pb2.CONDITION_STATUS_FALSE
    assert await mesh.says() == SENTENCE
    assert before[0] in mesh.engine_pids()


async def test_two_replicas_share_the_requests(mesh: ControlledMesh) -> None:
    server = await mesh.serve(replicas=2)
    assert server.ready_replicas == 2
    async with asking(mesh):
        sockets = list((mesh.settings.run_dir / "engines").glob("*.sock"))
        assert len(sockets) == 2

        async def both_worked() -> bool:
            return all([await worked(str(path)) for path in sockets])

        await until(both_worked, "both engines to have answered")


async def worked(socket: str) -> bool:
    """Whether an engine has answered anything."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket, force_close=True)) as session,
        session.get("http://engine/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    return any(line.startswith("llamacpp:tokens_predicted_total") and float(line.split()[1]) > 0 for line in lines)


async def test_one_of_two_replicas_may_die_and_only_its_own_requests_with_it(mesh: ControlledMesh) -> None:
    server = await mesh.serve(replicas=2)
    async with asking(mesh) as answers:
        kill(mesh.engine_pids()[0])
        await until(lambda: _restarted(mesh, server), "the replacement")
    assert [answer for answer in answers if answer[0] == 200]
    # Two lines of requests: at most the one each that was under way.
    assert sum(status != 200 for status, _ in answers) <= 2


async def _restarted(mesh: ControlledMesh, server: Server) -> bool:
    state = await mesh.server(server.server_uuid)
    return state.state == READY and sum(replica.restarts for replica in state.replica_statuses) == 1


async def test_removed_replicas_finish_their_requests(mesh: ControlledMesh) -> None:
    server = await mesh.serve(replicas=3)
    async with asking(mesh) as answers:
        await mesh.change(server, replicas=1)
        await until(lambda: _engines(mesh, 1), "one engine to be left")
    assert set(answers) == {(200, SENTENCE)}


async def _engines(mesh: ControlledMesh, count: int) -> bool:
    return len(mesh.engine_pids()) == count


async def test_another_name_is_served_and_the_old_one_is_not(mesh: ControlledMesh) -> None:
    server = await mesh.serve(name="before")
    await mesh.change(server, model_name="after")
    await mesh.until_state(server.server_uuid, READY)
    assert await mesh.says(model="after") == SENTENCE
    status, body = await mesh.chat(model="before")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert [model["id"] for model in (await mesh.get("/v1/models"))[1]["data"]] == ["after"]


async def test_a_removed_server_is_gone_everywhere_and_can_be_declared_again(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    last = await remove(mesh, server)
    assert last.state == server_pb2.SERVER_STATE_STOPPED
    assert mesh.engine_pids() == []
    assert list((mesh.settings.run_dir / "engines").iterdir()) == []
    for path, code in (
        ("/v1/chat/completions", "model_not_found"),
        (f"/{server.server_uuid}/v1/chat/completions", "server_not_found"),
    ):
        status, body = await mesh.chat(path)
        assert (status, body["error"]["code"]) == (404, code)
    await mesh.serve()
    assert await mesh.says() == SENTENCE


async def test_a_request_held_for_a_server_that_is_removed_gets_404(mesh: ControlledMesh) -> None:
    server = await mesh.serve("broken", "broken", wait=False)
    await mesh.until_state(server.server_uuid, server_pb2.SERVER_STATE_STARTING, server_pb2.SERVER_STATE_FAILING)
    held = asyncio.create_task(mesh.chat(f"/{server.server_uuid}/v1/chat/completions"))
    await remove(mesh, server)
    status, body = await held
    # Refused for its failure where that was first known, never left hanging.
    assert (status, body["error"]["code"]) in [(404, "server_not_found"), (503, "engine_not_ready")]


async def test_the_log_has_the_lines_of_the_engine(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    request = pb.ReadEngineLogRequest(server_uuid=server.server_uuid)

    async def told() -> bool:
        lines = [line async for part in mesh.control.ReadEngineLog(request) for line in part.lines]
        # Two processes write to the log: llama.cpp may have begun a line.
        return any("engine: ready on " in line for line in lines)

    await until(told, "the engine's own words")
