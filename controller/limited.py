"""Reflects the ids of contracts with limits from the contract service. If the service is unavailable, the last list stays in use."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection

import grpc

from llamesh.kit.reflector import Reflector
from llamesh.v1.admission_pb2 import WatchLimitedContractsRequest, WatchLimitedContractsResponse
from llamesh.v1.admission_pb2_grpc import AdmissionServiceStub


class LimitedContractReflector(Reflector[WatchLimitedContractsResponse]):
    """Watches the contracts until closed. Calls `on_change(ids)` with all ids whenever they change."""

    def __init__(self, contract: grpc.aio.Channel, on_change: Callable[[Collection[str]], None]) -> None:
        super().__init__("limited contracts")
        self._stub = AdmissionServiceStub(contract)
        self._on_change = on_change

    def _open(self) -> AsyncIterable[WatchLimitedContractsResponse]:
        return self._stub.WatchLimitedContracts(WatchLimitedContractsRequest(), wait_for_ready=True)

    def _begin(self) -> None:
        """Replace the list: each message is complete."""

    def _take(self, message: WatchLimitedContractsResponse) -> bool:
        self._on_change(frozenset(message.contract_ids))
        return True
