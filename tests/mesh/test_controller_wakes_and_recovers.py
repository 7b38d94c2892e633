"""Requests to a server without an engine are held and answered: from zero, after a crash, through a restart of the controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from engine.sentence import SENTENCE
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters
from tests.mesh.controlled import READY, ControlledMesh, controlled_mesh, kill_engine, until
from tests.mesh.llama_program import write_program

SLEEPING = server_pb2.SERVER_STATE_SLEEPING
FAILING = server_pb2.SERVER_STATE_FAILING


@pytest.fixture
async def mesh() -> AsyncIterator[ControlledMesh]:
    async with controlled_mesh() as running:
        yield running


async def sleep(mesh: ControlledMesh, server_uuid: str) -> None:
    await mesh.control.SleepDeclaredServer(pb.SleepDeclaredServerRequest(server_uuid=server_uuid))
    await mesh.until_state(server_uuid, SLEEPING)
    assert mesh.engine_pids() == []


async def test_twenty_first_requests_start_one_engine_and_all_are_answered(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    for path in ("/v1/chat/completions", f"/{server.server_uuid}/v1/chat/completions"):
        await sleep(mesh, server.server_uuid)
        before = mesh.starts()
        answers = await asyncio.gather(*(mesh.says(path) for _ in range(20)))
        assert answers == [SENTENCE] * 20
        assert mesh.starts() == before + 1


async def test_the_first_request_need_not_wait_for_the_declaration_to_be_ready(mesh: ControlledMesh) -> None:
    server = await mesh.serve(wait=False)
    assert server.state == server_pb2.SERVER_STATE_STARTING
    await until(lambda: _listed(mesh), "the name to be known")
    assert await mesh.says() == SENTENCE


async def _listed(mesh: ControlledMesh) -> bool:
    return bool((await mesh.get("/v1/models"))[1]["data"])


async def test_a_killed_engine_is_replaced_while_requests_wait(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    (old,) = mesh.engine_pids()
    await kill_engine(old)
    answers = await asyncio.gather(*(mesh.says() for _ in range(8)))
    assert answers == [SENTENCE] * 8
    state = await mesh.until_state(server.server_uuid, READY)
    assert [replica.restarts for replica in state.replica_statuses] == [1]
    assert mesh.engine_pids() != [old]


async def test_requests_wait_for_an_engine_that_was_killed_three_times_within_a_minute(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    for kills in range(1, 4):
        (old,) = mesh.engine_pids()
        await kill_engine(old)
        answers = await asyncio.gather(*(mesh.says() for _ in range(4)))
        assert answers == [SENTENCE] * 4
        assert mesh.starts() == kills + 1
    state = await mesh.server(server.server_uuid)
    assert [replica.restarts for replica in state.replica_statuses] == [3]


async def test_a_killed_controller_finds_its_engine_and_no_request_is_lost(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    before = mesh.engine_pids()
    answered: list[str] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            answered.append(await mesh.says())

    asking = [asyncio.create_task(ask()) for _ in range(2)]
    await mesh.kill_controller()
    seen = len(answered)
    await until(lambda: _longer(answered, seen + 5), "answers without a controller")
    await mesh.start_controller()
    await mesh.until_state(server.server_uuid, READY)
    seen = len(answered)
    await until(lambda: _longer(answered, seen + 5), "answers with the new controller")
    stop.set()
    await asyncio.gather(*asking)
    assert set(answered) == {SENTENCE}
    assert mesh.engine_pids() == before

    assert mesh.starts() == 1
    # What was adopted is really in hand: its death is noticed, and it is replaced.
    await kill_engine(before[0])
    assert await mesh.says() == SENTENCE
    assert mesh.starts() == 2


async def _longer(items: list[str], count: int) -> bool:
    return len(items) >= count


async def test_requests_held_while_the_controller_dies_are_answered_by_the_next(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    await sleep(mesh, server.server_uuid)
    await mesh.kill_controller()
    held = [asyncio.create_task(mesh.says()) for _ in range(4)]
    await mesh.start_controller()
    assert await asyncio.gather(*held) == [SENTENCE] * 4


async def test_requests_that_a_killed_controller_held_are_answered_by_the_next(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = write_program(tmp_path / "llama-server", gate)
    async with controlled_mesh(LLAMA_SERVER_BIN=str(program)) as mesh:
        await mesh.serve(wait=False)
        await until(lambda: _listed(mesh), "the name to be known")
        # No engine becomes ready until the controller has died twice.
        held = [asyncio.create_task(mesh.says()) for _ in range(10)]
        for _ in range(2):
            await mesh.until_held(10)
            await mesh.kill_controller()
            await mesh.start_controller()
        await mesh.until_held(10)
        assert not any(task.done() for task in held)
        gate.touch()
        assert await asyncio.gather(*held) == [SENTENCE] * 10


async def test_an_engine_of_no_declared_server_ends(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    await mesh.kill_controller()
    (mesh.settings.home / "data" / "controller.db").unlink()
    for rest in Path(mesh.settings.home / "data").glob("controller.db-*"):
        rest.unlink()
    await mesh.start_controller()

    async def ended() -> bool:
        return mesh.engine_pids() == [] and not list((mesh.settings.run_dir / "engines").iterdir())

    await until(ended, "the orphan to end and its files to go")

    async def unknown() -> bool:
        status, body = await mesh.chat(f"/{server.server_uuid}/v1/chat/completions")
        return (status, body["error"]["code"]) == (404, "server_not_found")

    await until(unknown, "Envoy to forget the server")


async def test_a_server_falls_asleep_when_idle_and_only_then(mesh: ControlledMesh) -> None:
    # Long enough for a busy machine: no two requests are so far apart.
    idle = 5
    server = await mesh.serve(idle_sleep=idle)
    loop = asyncio.get_running_loop()
    until_moment = loop.time() + 1.5 * idle
    while loop.time() < until_moment:
        assert await mesh.says() == SENTENCE
        await asyncio.sleep(0.2)
    assert mesh.starts() == 1
    state = await mesh.until_state(server.server_uuid, SLEEPING)
    assert "no request arrived" in state.conditions[0].message
    assert mesh.engine_pids() == []
    assert await mesh.says() == SENTENCE
    assert mesh.starts() == 2


async def test_a_request_longer_than_the_idle_time_is_not_cut_off(mesh: ControlledMesh) -> None:
    parameters = RuntimeParameters(ctx_size=131072, parallel=1, warmup=False)
    server = await mesh.serve(parameters=parameters)
    loop = asyncio.get_running_loop()
    body = {"model": "smol", "prompt": "Hi", "max_tokens": 130000, "ignore_eos": True, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{mesh.url}/v1/completions", json=body) as answer,
    ):
        await mesh.change(server, idle_sleep=1)
        began = loop.time()
        async for line in answer.content:
            assert b"[DONE]" not in line, "the answer has to outlast the idle time"
            if loop.time() - began > 2.5:
                break
        assert (await mesh.server(server.server_uuid)).state == READY
    assert mesh.starts() == 1
    await mesh.until_state(server.server_uuid, SLEEPING)


async def test_an_engine_that_cannot_start_is_refused_with_its_reason(mesh: ControlledMesh) -> None:
    server = await mesh.serve("broken", "broken", wait=False)
    state = await mesh.until_state(server.server_uuid, FAILING)
    ready = state.conditions[0]
    assert (ready.type, ready.reason) == ("Ready", "BadModel")
    status, body = await mesh.chat(model="broken")
    assert (status, body["error"]["code"]) == (503, "engine_not_ready")
    assert ready.message in body["error"]["message"]


async def test_a_model_that_is_not_there_is_said_so(mesh: ControlledMesh) -> None:
    server = await mesh.serve("missing", "missing", wait=False)
    state = await mesh.until_state(server.server_uuid, FAILING)
    conditions = {condition.type: condition for condition in state.conditions}
    assert conditions["ModelReady"].reason == "ModelNotFound"
    assert conditions["ModelReady"].status == server_pb2.CONDITION_STATUS_FALSE
    assert (await mesh.chat(model="missing"))[0] == 503


async def test_out_of_budget_is_503_with_a_reason(mesh: ControlledMesh) -> None:
    server = await mesh.serve("broken", "slow", wait=False, wake_budget=0.05)
    await until(lambda: _listed(mesh), "the name to be known")
    status, body = await mesh.chat(f"/{server.server_uuid}/v1/chat/completions")
    assert (status, body["error"]["type"]) == (503, "server_error")
