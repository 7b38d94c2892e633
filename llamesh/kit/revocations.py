"""The keys that no longer count, as the contract service tells them: the controller hands them to Envoy for inference, the public
services refuse them themselves. See `Reflector` for what holds while the contract service is away.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection, Set

import grpc

from llamesh.kit.reflector import Reflector
from llamesh.v1.admission_pb2 import WatchRevocationsRequest, WatchRevocationsResponse
from llamesh.v1.admission_pb2_grpc import AdmissionServiceStub


class RevocationReflector(Reflector[WatchRevocationsResponse]):
    """Watches, until closed. `on_change(ids, added)` is called with all revoked ids whenever they change: with those that were added to
    the same set, or with None for a set that replaces the earlier one."""

    def __init__(
        self, contract: grpc.aio.Channel, on_change: Callable[[Set[str], Collection[str] | None], None]
    ) -> None:
        super().__init__("revocations")
        self._stub = AdmissionServiceStub(contract)
        self._on_change = on_change
        self._known: set[str] = set()
        self._listed: set[str] = set()
        self._whole = False

    def _open(self) -> AsyncIterable[WatchRevocationsResponse]:
        return self._stub.WatchRevocations(WatchRevocationsRequest(), wait_for_ready=True)

    def _begin(self) -> None:
        self._listed = set()
        self._whole = False

    def _take(self, message: WatchRevocationsResponse) -> bool:
        if not self._whole:
            self._listed.update(message.key_ids)
        # Of a list that is not whole yet what it adds counts at once; the first one counts when it is whole.
        if self.synced:
            added = [key_id for key_id in message.key_ids if key_id not in self._known]
            self._known.update(added)
            if added:
                self._on_change(self._known, added)
        if message.synced and not self._whole:
            self._whole = True
            if self._listed != self._known or not self.synced:
                self._known = self._listed
                self._on_change(self._known, None)
        return self._whole
