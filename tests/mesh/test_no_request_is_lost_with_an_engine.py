"""Requests that wait in the backlog of an engine when it dies are answered by the next one; one that it has accepted is not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.runtimes import probe
from engine.sentence import SENTENCE
from llamesh.v1.server_pb2 import RuntimeParameters
from tests.mesh.controlled import READY, ControlledMesh, controlled_mesh, kill, until
from tests.mesh.engines import stop
from tests.mesh.llama_program import write_program
from tests.mesh.runtimes import stopped
from tests.processes import ProcessSnapshot, snapshots

WAITING = 24
"""Requests in the backlog: far above the 5 that llama.cpp's own backlog holds, below the connections that Envoy opens."""


@pytest.fixture
async def mesh() -> AsyncIterator[ControlledMesh]:
    async with controlled_mesh() as running:
        yield running


def llama_cpp(mesh: ControlledMesh) -> int:
    """Process id of the only llama.cpp."""
    (child,) = mesh.llamas()
    return int(child.pid)


async def unaccepted(mesh: ControlledMesh) -> int:
    """Connections to the engine that nobody has accepted: the kernel's table has them, no process does."""
    rows = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    sockets = str(mesh.settings.run_dir / "engines")
    return sum(row[5:7] == ["02", "0"] and row[7].startswith(sockets) for row in rows if len(row) == 8)


async def waiting(mesh: ControlledMesh, llama: int) -> list[asyncio.Task[tuple[int, Any]]]:
    """Requests in the backlog of the only engine, whose llama.cpp is stopped: it accepts nothing."""

    async def all_wait() -> bool:
        return await unaccepted(mesh) >= WAITING

    # A stopped controller does not suspect the engine, so Envoy sends it all of them.
    with stopped(mesh.controller_pid):
        await stop(llama)
        asked = [asyncio.create_task(mesh.chat()) for _ in range(WAITING)]
        await until(all_wait, "the requests to wait unaccepted")
    return asked


@pytest.mark.parametrize("victim", ["llama.cpp", "engine", "engine of a restarted controller"])
async def test_requests_that_a_dead_engine_never_accepted_are_answered(mesh: ControlledMesh, victim: str) -> None:
    server = await mesh.serve()
    if victim == "engine of a restarted controller":
        await mesh.kill_controller()
        await mesh.start_controller()
        await mesh.until_state(server.server_uuid, READY)
        assert await mesh.says() == SENTENCE
    child = llama_cpp(mesh)
    asked = await waiting(mesh, child)
    kill(child if victim == "llama.cpp" else mesh.engine_pids()[0])
    answers = await asyncio.gather(*asked)
    assert [status for status, _ in answers] == [200] * WAITING, answers[0]


async def test_an_engine_gets_requests_only_once_its_backlog_outlives_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = write_program(tmp_path / "llama-server", gate)
    async with controlled_mesh(LLAMA_SERVER_BIN=str(program)) as mesh:
        server = await mesh.serve(wait=False)

        async def loading() -> ProcessSnapshot | None:
            found = snapshots(lambda words: {str(program), "--model"} <= set(words))
            return found[0] if found else None

        child = await until(loading, "llama.cpp to be started")
        (engine,) = mesh.engine_pids()
        # Stopped, the supervising process hands nothing over, while llama.cpp becomes ready.
        with stopped(engine):
            gate.touch()
            (instance,) = (mesh.settings.run_dir / "engines").glob("*.json")
            await until(lambda: probe.is_ready(str(instance.with_suffix(".sock"))), "llama.cpp to be ready")

            async def ready() -> bool:
                return (await mesh.server(server.server_uuid)).state == READY

            with pytest.raises(TimeoutError):
                await until(ready, "the server to be ready too early", seconds=2)
        await mesh.until_state(server.server_uuid, READY)
        asked = await waiting(mesh, child.pid)
        kill(engine)
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * WAITING


async def test_a_request_that_an_engine_has_accepted_is_given_to_no_other(mesh: ControlledMesh) -> None:
    parameters = RuntimeParameters(ctx_size=131072, parallel=1, warmup=False)
    server = await mesh.serve(parameters=parameters)
    asked = asyncio.create_task(mesh.chat(max_tokens=130000, ignore_eos=True))

    async def busy() -> bool:
        (instance,) = (mesh.settings.run_dir / "engines").glob("*.sock")
        counters = await probe.counters(str(instance))
        return counters is not None and counters.requests > 0

    await until(busy, "the request to run")
    kill(llama_cpp(mesh))
    status, body = await asked
    assert (status, body["error"]["type"]) == (503, "server_error")
    await until(lambda: _started(mesh, 2), "another engine")
    await mesh.until_state(server.server_uuid, READY)
    (instance,) = (mesh.settings.run_dir / "engines").glob("*.sock")
    counters = await until(lambda: probe.counters(str(instance)), "the new engine's counters")
    assert (counters.requests, counters.work) == (0, 0)


async def _started(mesh: ControlledMesh, count: int) -> bool:
    return mesh.starts() >= count
