"""Limits how many requests of a contract run at the same time. No I/O; constant time for each request.

A request acquires a permit when it begins, and releases it when Envoy reports its end. Permits belong to this process: if several
replicas run, each counts its own.

Invariant: a contract never has more permits than its limit at the time of the request. A permit that is not released expires.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEASE_SECONDS = 3600.0
"""Lifetime of a permit in seconds: by default, llama.cpp works on one request for at most this time."""


@dataclass(frozen=True, slots=True)
class _Permit:
    number: int
    contract_ids: tuple[str, ...]
    request_id: str
    envoy: str
    expires: float


class ConcurrencyLimiter:
    """The permits of the requests that run now. `monotonic` returns seconds."""

    def __init__(self, monotonic: Callable[[], float], *, seconds: float = LEASE_SECONDS) -> None:
        self._monotonic = monotonic
        self._seconds = seconds
        self._taken = 0
        # Oldest first: all permits have the same lifetime, so the first one expires first.
        self._by_contract: dict[str, dict[int, _Permit]] = {}
        # A list: a permit whose release was lost stays until it expires, and another request may have the same id.
        self._by_request: dict[str, list[_Permit]] = {}

    def acquire(self, limits: Mapping[str, int], request_id: str, envoy: str = "") -> str | None:
        """Give a request a permit of each contract in `limits`. Return None, or the contract whose limit is reached.

        `envoy` is the Envoy that will report the end of the request.
        """
        now = self._monotonic()
        for contract_id, limit in limits.items():
            if self._live(contract_id, now) >= limit:
                return contract_id
        self._taken += 1
        permit = _Permit(self._taken, tuple(limits), request_id, envoy, now + self._seconds)
        for contract_id in limits:
            self._by_contract.setdefault(contract_id, {})[permit.number] = permit
        self._by_request.setdefault(request_id, []).append(permit)
        return None

    def release(self, request_id: str) -> None:
        """Release the oldest permit with this id, if there is one."""
        permits = self._by_request.get(request_id)
        if permits:
            self._remove(permits[0])

    def in_flight(self, contract_id: str) -> int:
        """Return the number of requests of a contract that run now."""
        return self._live(contract_id, self._monotonic())

    def release_all(self, envoy: str = "") -> None:
        """Release all permits of an Envoy that is gone, so that it reports no ends any more."""
        gone = [permit for permits in self._by_request.values() for permit in permits if permit.envoy == envoy]
        for permit in gone:
            self._remove(permit)

    def _live(self, contract_id: str, now: float) -> int:
        permits = self._by_contract.get(contract_id)
        if not permits:
            return 0
        while permits and (eldest := next(iter(permits.values()))).expires <= now:
            self._remove(eldest)
        return len(permits)

    def _remove(self, permit: _Permit) -> None:
        for contract_id in permit.contract_ids:
            of_contract = self._by_contract[contract_id]
            del of_contract[permit.number]
            if not of_contract:
                del self._by_contract[contract_id]
        of_request = self._by_request[permit.request_id]
        of_request.remove(permit)
        if not of_request:
            del self._by_request[permit.request_id]
