"""Real engines under a `ProcessRuntime`, without a controller around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp

from controller.runtimes import Engine, EngineExit, EngineLoad, EnginePhase, LaunchSpec
from controller.runtimes.process import ProcessRuntime
from llamesh.kit.config import Settings
from tests.mesh.engines import DEADLINE

SERVER = "0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10"
ENVIRONMENT = dict(os.environ) | {"LLAMA_SERVER_BIN": "embedded", "JWT_SECRET": "secret" * 8, "MINIO_SECRET_KEY": "x"}

STUCK_FOR_EVER = {
    "messages": [{"role": "user", "content": "Hi"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "string", "pattern": "^((((a{0,30}){0,30}){0,30}){0,30})$"}},
    },
}
"""A chat request that llama.cpp's inference loop does not come back from. The front door would refuse it: send it to an engine's socket."""


def launch_spec(model: Path, replica: int = 0, **more: object) -> LaunchSpec:
    """An order for an engine of SERVER; `more`: its parameters."""
    parameters = {"ctx_size": 512, "warmup": False, **more}
    return LaunchSpec(SERVER, replica, "hash", str(model), "smol", 8, parameters=parameters)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def only(runtime: ProcessRuntime) -> Engine:
    """The one engine of SERVER."""
    (engine,) = runtime.engines(SERVER)
    return engine


async def ready(runtime: ProcessRuntime, model: Path, **more: object) -> Engine:
    """Start an engine and wait until it is ready."""
    await runtime.start(launch_spec(model, **more))
    await until(lambda: only(runtime).phase is not EnginePhase.STARTING)
    assert only(runtime).phase is EnginePhase.READY, only(runtime)
    return only(runtime)


async def load(runtime: ProcessRuntime, engine: Engine) -> EngineLoad:
    """The load of an engine that answers, however late on a busy machine."""
    async with asyncio.timeout(DEADLINE):
        while (found := await runtime.load(engine.instance)) is None:
            pass
    return found


async def idle(runtime: ProcessRuntime, engine: Engine) -> EngineLoad:
    """The load of an engine without clients. It counts the connection of the question until it has closed it, late on a busy machine."""
    async with asyncio.timeout(DEADLINE):
        while (found := await load(runtime, engine)).busy:
            pass
    return found


async def ended(runtime: ProcessRuntime) -> EngineExit:
    """How the one engine of SERVER ends."""
    await until(lambda: only(runtime).phase is EnginePhase.ENDED)
    found = only(runtime).exit
    assert found is not None
    return found


def llama(engine: Engine) -> int:
    """The process id of an engine's llama.cpp. The engine is ready, so it has one child."""
    (child,) = Path(f"/proc/{engine.process}/task/{engine.process}/children").read_text().split()
    return int(child)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped for a `with` block, and goes on after it if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def post(socket: str, path: str, body: object) -> int:
    """Send a request to an engine's own socket. Returns the status; 0: the connection was cut off."""
    async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(socket)) as client:
        try:
            async with client.post(path, json=body) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientConnectionError:
            return 0


@contextlib.asynccontextmanager
async def opened(settings: Settings, probe_seconds: float = 0.1) -> AsyncIterator[ProcessRuntime]:
    """A runtime for a `with` block; none of its engines is left."""
    runtime = ProcessRuntime(settings, ENVIRONMENT, probe_seconds)
    await runtime.open(lambda _: None, lambda _: None)
    try:
        yield runtime
    finally:
        await runtime.stop_all(1)
        await runtime.close()
