"""Admission's one rule: so many requests of a contract at the same time. Pure, in memory, in constant time for each request.

A request takes a permit when it begins and gives it back when Envoy reports its end. The permits belong to this process: with several
replicas, each counts its own.

Invariant: a contract never has more permits than its limit at the time of asking; a permit that nobody gives back ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEASE_SECONDS = 3600.0
"""How long a request counts at most: as long as llama.cpp works on one by default."""


@dataclass(frozen=True, slots=True)
class _Permit:
    number: int
    contract_ids: tuple[str, ...]
    request_id: str
    expires: float


class ConcurrencyLimiter:
    """Requests that run now. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float], *, seconds: float = LEASE_SECONDS) -> None:
        self._monotonic = monotonic
        self._seconds = seconds
        self._taken = 0
        # Oldest first: all permits last equally long, so the first is the first to end.
        self._by_contract: dict[str, dict[int, _Permit]] = {}
        # A client may choose its request's id, and choose the same twice: every permit is kept, never one replaced by another.
        self._by_request: dict[str, list[_Permit]] = {}

    def acquire(self, limits: Mapping[str, int], request_id: str) -> str | None:
        """Count a request that begins against each contract with a limit; the contract whose limit is reached, where one is."""
        now = self._monotonic()
        for contract_id, limit in limits.items():
            if self._live(contract_id, now) >= limit:
                return contract_id
        self._taken += 1
        permit = _Permit(self._taken, tuple(limits), request_id, now + self._seconds)
        for contract_id in limits:
            self._by_contract.setdefault(contract_id, {})[permit.number] = permit
        self._by_request.setdefault(request_id, []).append(permit)
        return None

    def release(self, request_id: str) -> None:
        """A request has ended. Nothing happens where none of this id runs."""
        permits = self._by_request.get(request_id)
        if permits:
            self._remove(permits[0])

    def in_flight(self, contract_id: str) -> int:
        """Requests of a contract that run now."""
        return self._live(contract_id, self._monotonic())

    def release_all(self) -> None:
        """Whoever would report the end of these requests is gone, and they with it."""
        self._by_contract.clear()
        self._by_request.clear()

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
