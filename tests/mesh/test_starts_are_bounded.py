"""Many sleeping servers that are woken at the same moment start a few at a time, and every request is answered. Real engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from engine.sentence import SENTENCE
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server
from tests.mesh.controlled import MODEL, ControlledMesh, controlled_mesh, until
from tests.mesh.llama_program import write_program

SERVERS = 12
LIMIT = 2
SLEEPING = server_pb2.SERVER_STATE_SLEEPING


async def _watch(mesh: ControlledMesh, take: Callable[[dict[str, Server]], None]) -> None:
    """Hand over all servers after every change, until cancelled."""
    servers: dict[str, Server] = {}
    async for response in mesh.control.WatchServers(pb.WatchServersRequest()):
        if response.HasField("server"):
            servers[response.server.server_uuid] = response.server
        take(servers)


def _starting(engines: Path) -> set[str]:
    """The files of the engines that say that they are starting."""
    found = set()
    for file in engines.glob("*.state"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(file.read_text())["phase"] == "starting":
                found.add(file.name)
    return found


async def _count_starts(engines: Path, counts: set[int]) -> None:
    """Add how many engines are starting at a time, until cancelled.

    The states of servers are told one after the other, and files are read so: only what starts before and after all were read starts at
    one moment.
    """
    while True:
        before = _starting(engines)
        counts.add(len(before & _starting(engines)))
        await asyncio.sleep(0.01)


async def test_servers_that_wake_at_once_start_a_few_at_a_time_and_all_are_answered() -> None:
    async with controlled_mesh(LLAMESH_CONCURRENT_STARTS=str(LIMIT)) as mesh:
        names = [f"model-{index}" for index in range(SERVERS)]
        servers = [await mesh.serve(MODEL, name, wait=False) for name in names]
        for server in servers:
            await mesh.control.SleepDeclaredServer(pb.SleepDeclaredServerRequest(server_uuid=server.server_uuid))
        for server in servers:
            await mesh.until_state(server.server_uuid, SLEEPING)
        before = mesh.starts()

        counts: set[int] = set()
        words: set[str] = set()

        def take(seen: dict[str, Server]) -> None:
            words.update(f"{c.reason}: {c.message}" for s in seen.values() for c in s.conditions if c.type == "Ready")

        watching = [
            asyncio.create_task(_watch(mesh, take)),
            asyncio.create_task(_count_starts(mesh.settings.run_dir / "engines", counts)),
        ]
        answers = await asyncio.gather(*(mesh.says(model=name) for name in names))
        for task in watching:
            task.cancel()
        assert answers == [SENTENCE] * SERVERS
        assert mesh.starts() == before + SERVERS
        assert 1 <= max(counts) <= LIMIT
        assert any("WaitsForOtherStarts: 0 of 1 engines answer: waits for 2 other starts" in word for word in words)


async def test_a_server_that_a_request_waits_for_goes_before_those_that_are_merely_declared(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = write_program(tmp_path / "llama-server", gate)
    async with controlled_mesh(LLAMESH_CONCURRENT_STARTS="1", LLAMA_SERVER_BIN=str(program)) as mesh:
        others = [await mesh.serve(MODEL, f"declared-{index}", wait=False) for index in range(8)]
        asked = await mesh.serve(MODEL, "asked", wait=False)
        # The first start does not end before the request waits.
        answer = asyncio.create_task(mesh.says(model="asked"))
        await mesh.until_held(1)
        gate.touch()
        assert await answer == SENTENCE
        started = [each["server"] for each in mesh.logged("engine started")]
        assert started.index(asked.server_uuid) == 1, (
            "it was declared last and waited for one start, which was under way"
        )
        for server in (*others, asked):
            await mesh.until_state(server.server_uuid, server_pb2.SERVER_STATE_READY)


async def test_a_start_without_room_waits_and_names_the_missing_memory() -> None:
    async with controlled_mesh() as mesh:
        small = server_pb2.ServerSpec(model_uuid=MODEL, model_name="small")
        holder = await mesh.control.DeclareServer(pb.DeclareServerRequest(spec=small, engine_memory_bytes=64 << 20))
        await mesh.until_state(holder.server_uuid, server_pb2.SERVER_STATE_READY)
        spec = server_pb2.ServerSpec(model_uuid=MODEL, model_name="large")
        spec.wake_budget.FromMilliseconds(500)
        request = pb.DeclareServerRequest(spec=spec, engine_memory_bytes=1 << 50)
        server = await mesh.control.DeclareServer(request)

        async def waits() -> Server | None:
            found = await mesh.server(server.server_uuid)
            return found if found.conditions[0].reason == "WaitsForMemory" else None

        found: Server = await until(waits, "the start to wait for memory")
        assert "needs 1048576.0 GiB" in found.conditions[0].message
        assert {c.type: c.reason for c in found.conditions}["FitsMemory"] == "NotEnoughMemory"
        progressing = next(c.message for c in found.conditions if c.type == "Progressing")
        assert f"the largest holder is {holder.server_uuid} ({MODEL}) 64 MiB" in progressing
        assert "`llamesh sleep`" in progressing
        status, body = await mesh.chat(model="large")
        assert status == 503
        assert "needs 1048576.0 GiB" in body["error"]["message"]
        assert holder.server_uuid not in body["error"]["message"], (
            "it is said to those who may not know of other servers"
        )
        assert mesh.starts() == 1
        update = pb.UpdateDeclaredServerRequest(server_uuid=server.server_uuid, engine_memory_bytes=1 << 20)
        update.changes.wake_budget.FromSeconds(60)
        await mesh.control.UpdateDeclaredServer(update)
        assert await mesh.says(model="large") == SENTENCE


async def test_an_engine_that_has_no_room_beside_the_new_one_goes_first_while_requests_wait() -> None:
    # A limit that any machine with tests beside has free.
    async with controlled_mesh(LLAMESH_MEMORY_BYTES=str(2 << 30)) as mesh:
        capacity = (await mesh.control.GetCapacity(pb.GetCapacityRequest())).nodes[0]
        assert capacity.total_bytes == 2 << 30
        # More than half of it, so that no second one fits.
        most = capacity.total_bytes * 52 // 100
        request = pb.DeclareServerRequest(
            spec=server_pb2.ServerSpec(
                model_uuid=MODEL, model_name="smol", parameters=server_pb2.RuntimeParameters(ctx_size=2048)
            ),
            engine_memory_bytes=most,
        )
        server = await mesh.control.DeclareServer(request)
        await mesh.until_state(server.server_uuid, server_pb2.SERVER_STATE_READY)
        # What the system has available has hardly changed, as with mapped weights: it is promised all the same.
        after = (await mesh.control.GetCapacity(pb.GetCapacityRequest())).nodes[0]
        assert after.free_bytes <= capacity.total_bytes - most
        assert after.free_bytes < most
        (old,) = mesh.engine_pids()
        update = pb.UpdateDeclaredServerRequest(server_uuid=server.server_uuid, engine_memory_bytes=most)
        update.changes.parameters.ctx_size = 4096
        await mesh.control.UpdateDeclaredServer(update)

        async def replaced() -> bool:
            assert await mesh.says() == SENTENCE
            return mesh.engine_pids() not in ([old], [])

        await until(replaced, "the new engine")
        assert len(mesh.engine_pids()) == 1
