"""The tokens that no longer count, as the contract service's stream, kept open, tells them: the controller hands them to
Envoy for inference, the public services refuse them themselves.

Invariant: what was learned stays until a full list replaces it, so a contract service that goes away brings no revoked token back. A
process that starts knows none until the contract service has told it (`first` waits for that).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.v1.admission_pb2 import WatchRevocationsRequest
from llamesh.v1.admission_pb2_grpc import AdmissionServiceStub

_RETRY_SECONDS = 0.5
_LONGEST_PAUSE = 2.0


class Revocations:
    """Watches, until closed. `on_change(ids)` is called with all revoked ids whenever they change."""

    def __init__(self, contract: grpc.aio.Channel, on_change: Callable[[Iterable[str]], None]) -> None:
        self._stub = AdmissionServiceStub(contract)
        self._on_change = on_change
        self._known: frozenset[str] = frozenset()
        self._synced = asyncio.Event()
        self._task = BackgroundTask(
            "follow revocations", self._watch, report_failure, every=_RETRY_SECONDS, longest=_LONGEST_PAUSE
        )

    def start(self) -> None:
        """Begin to watch."""
        self._task.start()

    async def first(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a full list was taken. False where there was none in `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop watching."""
        await self._task.close()

    async def _watch(self) -> None:
        """One stream: a full list, `synced`, then additions."""
        listed: set[str] = set()
        synced = False
        try:
            async for response in self._stub.WatchRevocations(WatchRevocationsRequest(), wait_for_ready=True):
                listed.update(response.key_ids)
                synced = synced or response.synced
                self._take(frozenset(listed) if synced else self._known | listed)
                if synced:
                    self._synced.set()
        except grpc.aio.AioRpcError as error:
            if not synced:
                raise
            # It had told everything: its end is that of the other process, and no failure.
            log.debug("the watch of revocations ended", code=error.code().name)

    def _take(self, ids: frozenset[str]) -> None:
        if ids != self._known:
            self._known = ids
            self._on_change(ids)
