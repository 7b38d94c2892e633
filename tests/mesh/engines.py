"""Real engines for tests: start one, talk to it over its Unix socket, leave no process behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp

from llamesh.processes import start_time
from tests.mesh.llama_program import write_program
from tests.processes import snapshots

LLAMA_SERVER_BIN = os.environ.get("TEST_LLAMA_SERVER_BIN", "embedded")
"""Which llama.cpp the engine tests run on: the embedded library, or the path of a real llama-server."""
DEADLINE = 60.0
"""Seconds that anything here may take on a busy machine."""


@dataclass
class Engine:
    """A running `python -m engine`."""

    process: asyncio.subprocess.Process
    socket: Path
    state_file: Path
    log_file: Path

    @property
    def state(self) -> dict[str, Any]:
        """The published state; empty before the first."""
        return json.loads(self.state_file.read_bytes()) if self.state_file.exists() else {}

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    async def until(self, phase: str) -> dict[str, Any]:
        """Wait for a phase of its life."""
        async with asyncio.timeout(DEADLINE):
            while self.state.get("phase") != phase:
                if self.process.returncode is not None and self.state.get("phase") != phase:
                    raise AssertionError(
                        f"ended with {self.process.returncode} before {phase}: {self.state} {self.log}"
                    )
                await asyncio.sleep(0.01)
        return self.state

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()

    def children(self) -> list[int]:
        """The processes it has started."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    @contextlib.asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
        """A client on the engine's socket, one connection a request as Envoy has it."""
        connector = aiohttp.UnixConnector(str(self.socket), force_close=True, limit=0)
        async with aiohttp.ClientSession("http://engine", connector=connector, **settings) as session:
            yield session


@contextlib.asynccontextmanager
async def engine(
    directory: Path,
    model: Path,
    *,
    lifeline: int | None = None,
    memory_limit: int = resource.RLIM_INFINITY,
    environment: Mapping[str, str] = MappingProxyType({}),
    **spec: Any,
) -> AsyncIterator[Engine]:
    """Start an engine in a directory, with the embedded library, or the llama-server that TEST_LLAMA_SERVER_BIN names.

    `memory_limit`: bytes of address space that each of its processes may have.
    """
    directory.mkdir(exist_ok=True)
    document = {"model": str(model), "listen": str(directory / "e.sock"), "alias": "sentence", **spec}
    document.setdefault("state_file", str(directory / "state.json"))
    spec_file = directory / "spec.json"
    spec_file.write_text(json.dumps(document))
    variables = dict(os.environ) | {"LLAMA_SERVER_BIN": LLAMA_SERVER_BIN} | dict(environment)
    if lifeline is not None:
        variables["LLAMESH_LIFELINE_FD"] = str(lifeline)
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine", str(spec_file)),
            env=variables,
            stderr=log,
            pass_fds=() if lifeline is None else (lifeline,),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit)),
        )
    running = Engine(process, directory / "e.sock", Path(document["state_file"]), directory / "log")
    try:
        yield running
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()


def chat(text: str = "Hello!", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "sentence", "messages": [{"role": "user", "content": text}], **more}


def events(body: str) -> Iterator[str]:
    """The data of a server-sent event stream."""
    return (line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: "))


async def gone(pid: int) -> bool:
    """Whether a process ends within the deadline, all its threads included; what is left unreaped has ended."""
    async with asyncio.timeout(DEADLINE):
        while alive(pid):
            await asyncio.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a thread of this process runs: until the last has ended, its sockets are open."""
    return start_time(pid) is not None


async def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has reached every thread: one that still runs may accept a connection."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE):
        while not all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir()):
            await asyncio.sleep(0.01)


def _state(task: Path) -> str:
    """The state of a thread; one that has ended counts as stopped."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"


@contextlib.asynccontextmanager
async def loading(directory: Path, model: Path, **spec: Any) -> AsyncIterator[tuple[Engine, Path]]:
    """An engine whose llama.cpp runs and loads its model only once the path that comes with it exists. See `engine`."""
    gate = directory / "gate"
    directory.mkdir(exist_ok=True)
    program = write_program(directory / "llama-server", gate)
    async with engine(directory, model, environment={"LLAMA_SERVER_BIN": str(program)}, **spec) as running:
        async with asyncio.timeout(DEADLINE):
            while not snapshots(lambda words: {str(program), "--model"} <= set(words)):
                await asyncio.sleep(0.05)
        yield running, gate


def stalls(bursts: Sequence[Sequence[float]]) -> int:
    """In how many bursts of requests, each with its seconds, some waited for the 5 s that llama.cpp keeps an idle connection.

    Nothing is answered while they wait. On a busy machine a burst takes long too, but one answer follows the other.
    """
    return sum(max(later - one for one, later in pairwise(sorted(took))) > 4 for took in bursts)
