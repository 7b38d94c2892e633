"""An engine whose inference loop is stuck gets no new requests, is ended and replaced, and takes nobody along. Real Envoy and engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from engine.sentence import SENTENCE
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server
from tests.mesh.controlled import DEADLINE, READY, ControlledMesh, controlled_mesh, until
from tests.mesh.runtimes import STUCK_FOR_EVER, post, stopped
from tests.mesh.vanishing import vanish

STALL = 20
"""Seconds. The second silent probe comes well before, also after a pause of the controller, which counts for at most 10 s."""
DEGRADED = server_pb2.SERVER_STATE_DEGRADED
SLEEPING = server_pb2.SERVER_STATE_SLEEPING


@pytest.fixture
async def mesh() -> AsyncIterator[ControlledMesh]:
    """A mesh with the usual patience, which ends no engine because the machine is busy."""
    async with controlled_mesh() as running:
        yield running


@pytest.fixture
async def impatient() -> AsyncIterator[ControlledMesh]:
    """A mesh that ends a stuck engine within the time of a test."""
    async with controlled_mesh(LLAMESH_ENGINE_STALL_SECONDS=str(STALL)) as running:
        yield running


def sockets(mesh: ControlledMesh) -> dict[int, str]:
    """The engines' sockets by the process id of their llama.cpp."""
    return {
        child.pid: engine.words[-1].removesuffix(".spec") + ".sock"
        for engine in mesh.engine_processes()
        for child in engine.children
    }


async def predicted(socket: str, seconds: float = DEADLINE) -> int:
    """Tokens that an engine has said so far. Raises TimeoutError if it does not say so in time."""
    async with (
        aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(socket)) as client,
        client.get("/metrics", timeout=aiohttp.ClientTimeout(seconds)) as answer,
    ):
        (line,) = (
            line for line in (await answer.text()).splitlines() if line.startswith("llamacpp:tokens_predicted_total")
        )
        return int(line.split()[1])


async def stick(socket: str) -> asyncio.Task[int]:
    """Get an engine's inference loop stuck. Returns the request that did it."""
    poison = asyncio.create_task(post(socket, "/v1/chat/completions", STUCK_FOR_EVER))

    async def silent() -> bool:
        try:
            await predicted(socket, 2)
        except TimeoutError:
            return True
        return False

    await until(silent, "the loop to be stuck")
    return poison


def ready_condition(server: Server) -> tuple[str, str]:
    (found,) = (item for item in server.conditions if item.type == "Ready")
    return found.reason, found.message


async def test_a_stopped_engine_of_two_is_taken_out_of_balance_and_back_in(mesh: ControlledMesh) -> None:
    server = await mesh.serve(replicas=2)
    pid, socket = next(iter(sockets(mesh).items()))
    with stopped(pid):
        state = await mesh.until_state(server.server_uuid, DEGRADED)
        reason, message = ready_condition(state)
        assert (reason, state.ready_replicas) == ("InferenceSilent", 1)
        assert "does not answer" in message
        await mesh.until_withdrawn(socket)
        answers = await asyncio.gather(*(mesh.says() for _ in range(40)))
        assert answers == [SENTENCE] * 40
    state = await mesh.until_state(server.server_uuid, READY)
    assert [replica.restarts for replica in state.replica_statuses] == [0, 0]
    assert mesh.starts() == 2


async def test_a_stuck_engine_is_ended_replaced_and_counted_and_its_request_is_not_retried(
    impatient: ControlledMesh,
) -> None:
    mesh = impatient
    server = await mesh.serve(replicas=2)
    (pid, socket), (_, other) = sockets(mesh).items()
    before = await predicted(other)

    async def some_answered() -> bool:
        return any(task.done() for task in unlucky)

    # A stopped controller suspects no engine.
    with stopped(mesh.controller_pid):
        poison = await stick(socket)
        # These may meet the stuck engine: a request that it has is lost with it, and not tried again elsewhere.
        unlucky = [asyncio.create_task(mesh.chat()) for _ in range(12)]
        await until(some_answered, "an answer of the other engine")
    await mesh.until_state(server.server_uuid, DEGRADED)
    await mesh.until_withdrawn(socket)
    answers = await asyncio.gather(*(mesh.chat() for _ in range(8)))
    assert [status for status, _ in answers] == [200] * 8

    async def replaced() -> Server | None:
        found = await mesh.server(server.server_uuid)
        return found if found.state == READY and mesh.starts() == 3 else None

    state = await until(replaced, "the stuck engine to be replaced")
    assert await poison == 0
    results = await asyncio.gather(*unlucky)
    lost = [body for status, body in results if status != 200]
    assert lost, "of a dozen requests at once some went to the stuck engine"
    assert all(body["error"]["code"] == "service_unavailable" for body in lost), lost
    # The other engine has said what the answered requests got, and nothing for those that were lost.
    answers += [(status, body) for status, body in results if status == 200]
    assert await predicted(other) - before == sum(body["usage"]["completion_tokens"] for _, body in answers)
    assert sorted(replica.restarts for replica in state.replica_statuses) == [0, 1]
    (told,) = (replica.message for replica in state.replica_statuses if replica.restarts)
    assert "InferenceStuck 1" in told
    # Longer than the setting if the engine had pauses before, as on a busy machine.
    assert int(told.split("no progress for ")[1].split(" s")[0]) >= STALL
    assert pid not in sockets(mesh)


async def test_requests_to_a_server_whose_only_engine_is_stuck_are_held_for_the_next_one(
    impatient: ControlledMesh,
) -> None:
    mesh = impatient
    server = await mesh.serve()
    ((pid, socket),) = sockets(mesh).items()
    poison = await stick(socket)
    state = await mesh.until_state(server.server_uuid, DEGRADED)
    assert state.ready_replicas == 0
    await mesh.until_withdrawn(socket)
    held = [asyncio.create_task(mesh.says()) for _ in range(8)]
    assert await asyncio.gather(*held) == [SENTENCE] * 8
    assert await poison == 0
    assert pid not in sockets(mesh)
    state = await mesh.until_state(server.server_uuid, READY)
    assert [replica.restarts for replica in state.replica_statuses] == [1]


async def test_requests_held_while_an_engine_is_suspect_go_to_it_when_it_answers_again(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    ((pid, socket),) = sockets(mesh).items()
    with stopped(pid):
        await mesh.until_state(server.server_uuid, DEGRADED)
        await mesh.until_withdrawn(socket)
        held = [asyncio.create_task(mesh.says()) for _ in range(8)]
        await mesh.until_held(8)
    assert await asyncio.gather(*held) == [SENTENCE] * 8
    assert mesh.starts() == 1


async def test_engines_whose_run_directory_is_deleted_are_replaced(mesh: ControlledMesh) -> None:
    server = await mesh.serve()
    (old,) = sockets(mesh)
    vanish(mesh.settings.run_dir / "engines")

    async def replaced() -> bool:
        found = await mesh.server(server.server_uuid)
        return found.state == READY and bool(sockets(mesh)) and old not in sockets(mesh)

    await until(replaced, "the engine to be replaced")
    assert await mesh.says() == SENTENCE
    assert mesh.starts() == 2

    async def alone() -> bool:
        return mesh.engine_pids() == [engine.pid for engine in mesh.engine_processes()]

    # The old engine finishes what it works on first.
    await until(alone, "the end of the old engine")


async def test_a_server_does_not_fall_asleep_while_a_client_is_connected_to_its_engine(mesh: ControlledMesh) -> None:
    """As a request is that llama.cpp still tokenizes: in none of its counters."""
    server = await mesh.serve()
    ((_, socket),) = sockets(mesh).items()
    reader, writer = await asyncio.open_unix_connection(socket)
    body = b'{"prompt": "Hi", "max_tokens": 1}'
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    await mesh.change(server, idle_sleep=1)
    await asyncio.sleep(3)  # Three times its idle time: nothing happens, and nothing may.
    assert (await mesh.server(server.server_uuid)).state == READY
    writer.write(body)
    assert b"200" in await reader.readline()
    writer.close()
    await mesh.until_state(server.server_uuid, SLEEPING)


async def test_an_engine_whose_supervising_process_hangs_while_llama_cpp_dies_is_replaced_soon() -> None:
    async with controlled_mesh() as mesh:
        server = await mesh.serve()
        (supervising,) = mesh.engine_processes()
        (llama,) = supervising.children
        with stopped(supervising.pid):
            llama.kill()

            async def replaced() -> Server | None:
                found = await mesh.server(server.server_uuid)
                return found if found.state == READY and mesh.starts() == 2 else None

            await until(replaced, "the engine to be replaced")
            # Well before an engine that uses no processor time is ended.
            (killed,) = mesh.logged("engine killed: it hangs")
            assert "llama.cpp ended" in killed["reason"]
        assert await mesh.says() == SENTENCE


async def test_an_engine_whose_supervising_process_is_stopped_is_replaced_and_finishes_its_request_first() -> None:
    async with controlled_mesh() as mesh:
        server = await mesh.serve()
        (supervising,) = mesh.engine_processes()
        (llama,) = supervising.children
        reader, writer = await asyncio.open_unix_connection(sockets(mesh)[llama.pid])
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n")
        writer.write(b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        with stopped(supervising.pid):

            async def replaced() -> Server | None:
                found = await mesh.server(server.server_uuid)
                return found if found.state == READY and mesh.starts() == 2 else None

            await until(replaced, "another engine in its place")
            assert await mesh.says() == SENTENCE
            assert llama.is_running()
            writer.write(body)
            assert SENTENCE.encode() in await reader.read()
            writer.close()

            async def ended() -> bool:
                return not llama.is_running()

            await until(ended, "the first engine to be ended")
        assert await mesh.says() == SENTENCE
        assert mesh.starts() == 2
