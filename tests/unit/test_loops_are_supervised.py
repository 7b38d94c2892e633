"""No service keeps a loop or a task of its own: what runs in the background is a BackgroundTask, which survives its failures.

A stream that serves one caller (an async generator) ends with that caller and is no background work.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("services", "controller", "llamesh/kit")

ALLOWED = {
    "services/download/transfer_run.py::TransferRuns.broadcast_end": "optimistic retry of one read",
    "controller/metrics.py::ServerMetrics._of_engines": "asks every engine once for one scrape, for a bounded time",
    # Work for one call or one object, with an end of its own.
    "services/contract/access_log.py::AccessLog.stream_access_logs": "reads one stream of Envoy until that ends",
    "services/download/catalogue.py::Catalogue.delete": "one deletion, which a caller that leaves does not stop",
    "services/download/old_headers.py::OldHeaders.read_again": "the pages of one look, which a BackgroundTask repeats",
    "services/download/worker.py::Worker._follow_rows": "one task for each transfer, which the rows bring back if it fails",
    "services/download/cleanup.py::Cleanup.run": "one removal, whose failure it reports; the next pass of the worker removes again",
    "llamesh/kit/outages.py::until_written": "repeats one step of one task while the database is away",
    "services/quant/worker.py::JobWorker._start": "one task for each job, which the rows bring back if it fails",
    "services/quant/worker.py::JobWorker._ended": "one write that ends a job; if it fails, the rows bring the job back",
    "services/quant/job_watches.py::JobWatches._read": "repeats one read for one caller while the database is away",
    "services/quant/variants.py::Variants._owned": "one request, which is waited for",
    "services/quant/job_run.py::JobRuns.run": "one task for each job, which ends with it",
    "llamesh/kit/streams.py::allowed": "reads one stream until it or the rights of its reader end",
    "llamesh/kit/kubernetes_api.py::KubernetesApi.all": "reads the pages of one list",
    "llamesh/kit/rotating_channel.py::RotatingChannel.present": "closes one channel after its last call",
    "llamesh/kit/rotating_channel.py::_began": "waits for the head of one answer",
    "llamesh/kit/completion.py::to_completion": "one piece of work, which is waited for",
    "llamesh/kit/completion.py::together": "tasks of one piece of work, which are waited for",
    "controller/declared_servers.py::DeclaredServers.change": "optimistic retry of one call",
    "controller/declared_servers.py::DeclaredServers.begin_removal": "optimistic retry of one call",
    "controller/xds/serving.py::ControlPlane._serve": "reads one stream of Envoy until that ends",
    "controller/model_files.py::ModelFiles.locate": "asks once; the next look asks again",
    "controller/model_files.py::ModelFiles.ask_again": "asks once, for a BackgroundTask that repeats it",
    "controller/publication.py::Publication.publish": "waits for one acknowledgement",
    "controller/request_holder.py::RequestHolder._hold": "holds one request for its budget",
    "controller/wake_tasks.py::WakeTasks.start": "one task for each server, which ends with its wake",
    "controller/wake_tasks.py::WakeTasks._wake_repeatedly": "wakes one server, again and again while a request is held for it",
    "controller/runtimes/engine_process.py::EngineProcess.start": "one task for each engine, which ends with it",
    "controller/runtimes/engine_process.py::EngineProcess.adopt": "one task for each engine, which ends with it",
    "controller/runtimes/probe.py::_get": "waits for one connection, for a bounded time",
    "controller/runtimes/backlogs.py::Backlogs.hold": "asks one engine once, for a bounded time",
    "controller/runtimes/backlogs.py::Backlogs.turn_away": "answers what waits for one engine that has ended",
    "controller/runtimes/backlogs.py::Backlogs._ask": "asks one engine until it has answered",
    "controller/runtimes/backlogs.py::_connected": "waits for one connection, for a bounded time",
    "llamesh/kit/occupancy.py::ConnectionTable.clients": "reads one table, for all who ask at that moment",
    "llamesh/kit/objects/node_cache.py::NodeCache.path": "one fill",
    "llamesh/file_holds.py::_lock_shared": "waits for one lock, for a bounded time",
    "llamesh/kit/objects/staging.py::_create_locked": "makes one file",
    "llamesh/kit/serving.py::Member.show_part": "sets one state",
    # Ends with the start of the process.
    "llamesh/kit/ownership.py::_locked": "waits for the lock of the home",
    "llamesh/kit/leases.py::Lease.acquire": "waits for the lease",
    "llamesh/kit/database_watch.py::DatabaseWatch.wait": "waits for the database or the end",
    # Survive every failure by themselves.
    "controller/work_queue.py::WorkQueue.start": "workers report a look that failed and look again, with a backoff for each server",
    "controller/work_queue.py::WorkQueue._work": "see above",
}
"""Functions that may loop for ever or start tasks, and why."""


def background_work(source: str) -> Iterator[str]:
    """Qualified names of the functions that loop for ever or start tasks."""

    def visit(node: ast.AST, names: tuple[str, ...], generator: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner, inside = names, generator
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = (*names, child.name)
                inside = any(isinstance(item, ast.Yield | ast.YieldFrom) for item in ast.walk(child))
            endless = isinstance(child, ast.While) and isinstance(child.test, ast.Constant) and bool(child.test.value)
            called = child.func if isinstance(child, ast.Call) else None
            started = isinstance(called, ast.Attribute) and called.attr in {"create_task", "ensure_future", "TaskGroup"}
            if (endless and not inside) or started:
                yield ".".join(inner)
            yield from visit(child, inner, inside)

    yield from visit(ast.parse(source), (), generator=False)


@pytest.mark.parametrize("place", PLACES)
def test_background_work_is_supervised(place: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}::{name}"
        for path in (ROOT / place).rglob("*.py")
        for name in background_work(path.read_text())
    } - ALLOWED.keys()
    assert not found, "use llamesh.background.BackgroundTask, or say in ALLOWED why not"


def test_no_service_decides_by_itself_which_failures_of_the_database_it_survives() -> None:
    found = {
        str(path.relative_to(ROOT))
        for place in PLACES
        for path in (ROOT / place).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type and "SQLAlchemyError" in ast.unparse(node.type)
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("async def f():\n while True:\n  await g()", ["f"]),
        ("class A:\n def start(self):\n  self.t = asyncio.create_task(g())", ["A.start"]),
        ("async def f():\n while True:\n  yield 1", []),
        ("async def f():\n while x:\n  await g()", []),
    ],
)
def test_a_loop_is_found(source: str, names: list[str]) -> None:
    assert list(background_work(source)) == names
