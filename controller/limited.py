"""The contracts that limit something, as the contract service tells them. See `Reflector` for what holds while it is away."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection

import grpc

from llamesh.kit.reflector import Reflector
from llamesh.v1.admission_pb2 import WatchLimitedContractsRequest, WatchLimitedContractsResponse
from llamesh.v1.admission_pb2_grpc import AdmissionServiceStub


class LimitedContractReflector(Reflector[WatchLimitedContractsResponse]):
    """Watches, until closed. `on_change(ids)` is called with all their ids whenever they change."""

    def __init__(self, contract: grpc.aio.Channel, on_change: Callable[[Collection[str]], None]) -> None:
        super().__init__("limited contracts")
        self._stub = AdmissionServiceStub(contract)
        self._on_change = on_change

    def _open(self) -> AsyncIterable[WatchLimitedContractsResponse]:
        return self._stub.WatchLimitedContracts(WatchLimitedContractsRequest(), wait_for_ready=True)

    def _begin(self) -> None:
        """Each message is a full list."""

    def _take(self, message: WatchLimitedContractsResponse) -> bool:
        self._on_change(frozenset(message.contract_ids))
        return True
