"""Every background task of every member goes on after every fault of the database, whatever it was doing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from llamesh.background import BackgroundTask
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from tests.contract.patience import PATIENCE
from tests.contract.test_calls_without_a_database import Mesh, locked, mesh, server

__all__ = ["mesh", "server"]

pytestmark = pytest.mark.timeout(600)

NEED_THE_DATABASE = {"delete old decisions", "read limits", "rotate signing keys", "reconcile every server"}
"""Tasks that fail while there is none; the others wait, or have nothing to do."""
PERIODIC = NEED_THE_DATABASE | {"write usage and refusals", "follow signing keys", "watch the database"}
STREAMING = {"follow servers", "follow the catalogue", "follow revocations", "write run states"}


@dataclass
class Watched:
    """All tasks, and how often each has succeeded and failed."""

    tasks: list[BackgroundTask] = field(default_factory=list)
    successes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def until(self, counts: dict[str, int], names: set[str]) -> None:
        """Wait until each of these tasks has got one more."""
        before = dict(counts)
        async with asyncio.timeout(2 * PATIENCE):
            while any(counts[name] == before.get(name, 0) for name in names):
                await asyncio.sleep(0.05)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watches the tasks that are started from now on, and lets none pause for long."""
    seen = Watched()
    start, once = BackgroundTask.start, BackgroundTask._once

    def watched_start(task: BackgroundTask) -> None:
        seen.tasks.append(task)
        start(task)

    async def watched_once(task: BackgroundTask) -> float:
        pause = await once(task)
        (seen.failures if task.failures else seen.successes)[task.name] += 1
        return min(pause, 0.2)

    monkeypatch.setattr(BackgroundTask, "start", watched_start)
    monkeypatch.setattr(BackgroundTask, "_once", watched_once)
    return seen


@pytest.fixture
async def watched_mesh(watched: Watched, mesh: Mesh) -> Mesh:
    return mesh


@asynccontextmanager
async def stopped(mesh: Mesh) -> AsyncIterator[None]:
    await asyncio.to_thread(mesh.server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(mesh.server.start)


@asynccontextmanager
async def frozen(mesh: Mesh) -> AsyncIterator[None]:
    mesh.server.freeze()
    try:
        yield
    finally:
        mesh.server.thaw()


@asynccontextmanager
async def full(_mesh: Mesh) -> AsyncIterator[None]:
    """FAKE: the error of a full disk, without filling one."""

    async def refuse(*_: object) -> None:
        raise MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full", retry_after=30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "begin", _failing(refuse))
        patch.setattr(Database, "read", _failing(refuse))
        yield


def _failing(refuse: Callable[..., Awaitable[None]]) -> Callable[..., AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def failing(*_: object) -> AsyncIterator[None]:
        await refuse()
        yield

    return failing


@pytest.mark.parametrize("fault", [stopped, frozen, locked, full])
async def test_every_task_goes_on(
    watched: Watched, watched_mesh: Mesh, fault: Callable[[Mesh], AbstractAsyncContextManager[None]]
) -> None:
    names = {task.name for task in watched.tasks}
    assert names >= PERIODIC | STREAMING
    await watched.until(watched.successes, PERIODIC)
    async with fault(watched_mesh):
        await watched.until(watched.failures, NEED_THE_DATABASE)
    await watched.until(watched.successes, PERIODIC)
    ended = {task.name for task in watched.tasks if task._task is None or task._task.done()}
    assert not ended & (PERIODIC | STREAMING)
