"""Mirrors the revoked keys, which the contract service owns. The controller passes them to Envoy; services refuse these keys themselves.

See `Reflector` for the behaviour during an outage of the contract service.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection, Set

import grpc

from llamesh.kit.reflector import Reflector
from llamesh.v1.admission_pb2 import WatchRevocationsRequest, WatchRevocationsResponse
from llamesh.v1.admission_pb2_grpc import AdmissionServiceStub


class RevocationReflector(Reflector[WatchRevocationsResponse]):
    """Mirrors the ids of revoked keys. Each change calls `on_change(ids, added)` with all ids; `added` is None for a new list."""

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
        # Additions of a new list take effect at once, its removals when the list is complete. The first list takes effect when complete.
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
