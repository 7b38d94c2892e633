"""Throttles password guessing: after some failures, a user name has to wait at the address that failed, and so has the whole address.

An attempt waits in `attempt` until it may begin, counts as running while the password is checked, and wakes the waiting attempts at its
end. Only attempts of one address wait for each other.

Invariants: failures at other addresses never lock a user out, and no lock lasts for ever (fair_queue.py shares the hashing). An attempt
counts before its password is checked, so concurrent guessing is no faster than sequential guessing. Memory is bounded for any names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from llamesh.kit.errors import MeshError, Reason
from services.gateway.fair_queue import Requester

FREE_FAILURES = 5
"""Failures of a name at an address that cause no pause: people mistype."""

FREE_FAILURES_OF_ADDRESS = 20
"""Failures of all names at an address that cause no pause: people share addresses."""

FREE_FAILURES_OF_SITE = 100
"""Failures of all addresses of an IPv6 /48 that cause no pause: the network may belong to one owner or to many."""

FIRST_PAUSE = 1.0
"""Pause in seconds after the first failure above these numbers; each further failure doubles it."""

MAX_PAUSE = 60.0
"""Longest pause in seconds."""

FORGOTTEN_AFTER = 900.0
"""Seconds without a failure after which earlier ones no longer count."""

MAX_RECORDS = 10_000
"""Maximum number of records of names at addresses, and of addresses; the least recently used record is dropped first."""

MAX_AT_ONCE = 4
"""Maximum number of passwords of one address that are hashed, or wait for it, at a time, so that one client cannot fill the queue."""

MAX_WAITING_OF_ADDRESS = 32
"""Maximum number of attempts of one address that wait to begin; more are refused."""

MAX_WAITING = 1000
"""Maximum number of attempts of all addresses that wait to begin."""

_NETWORK_BITS = 64
"""Bits of an IPv6 network that one host has for itself: the network counts as one address."""

_LOOPBACK = "loopback"
"""Name for all addresses of the loopback interface, which any account of this machine can use: they count as one."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Record:
    failures: int = 0
    last_failure: float = 0.0
    free_at: float = 0.0
    running: int = 0


class _Records(Generic[Key]):
    """Failures by a key; the first `free` cause no pause. `clock` is monotonic."""

    def __init__(self, free: int, clock: Callable[[], float]) -> None:
        self._free = free
        self._clock = clock
        self._records: OrderedDict[Key, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def running(self, key: Key) -> int:
        """Return the number of running attempts."""
        return self._present(key).running

    def pause(self, key: Key) -> float:
        """Return the seconds before the next attempt may begin."""
        return self._present(key).free_at - self._clock()

    def has_room(self, key: Key) -> bool:
        """Whether one more attempt may begin without a pause, even if all running ones fail."""
        record = self._present(key)
        return record.running < max(1, self._free - record.failures)

    def begin(self, key: Key) -> None:
        self._stored(key).running += 1

    def failed(self, key: Key) -> None:
        record = self._stored(key)
        record.failures += 1
        record.last_failure = self._clock()
        if record.failures >= self._free:
            pause = FIRST_PAUSE * 2.0 ** min(record.failures - self._free, 32)
            record.free_at = record.last_failure + min(pause, MAX_PAUSE)

    def succeeded(self, key: Key) -> None:
        record = self._stored(key)
        record.failures, record.free_at = 0, 0.0

    def end(self, key: Key) -> None:
        """End an attempt; a record without failures is dropped."""
        record = self._stored(key)
        record.running = max(0, record.running - 1)
        if not record.running and not record.failures:
            del self._records[key]

    def _present(self, key: Key) -> _Record:
        """Return a record without storing a new one, so that refused attempts displace no records."""
        record = self._records.get(key)
        if record is None:
            return _Record()
        if record.failures and self._clock() - record.last_failure > FORGOTTEN_AFTER:
            record.failures = 0
        return record

    def _stored(self, key: Key) -> _Record:
        record = self._records[key] = self._present(key)
        self._records.move_to_end(key)
        if len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)
        return record


@dataclass(slots=True)
class LoginAttempt:
    """One attempt to log in; it counts as neither success nor failure until `right` is set."""

    requester: Requester
    """Requester of the hash, for the fair queue."""
    right: bool | None = None
    """Whether the password was right."""


class Throttle:
    """Admits attempts by name and address. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pairs: _Records[tuple[str, str]] = _Records(FREE_FAILURES, clock)
        self._addresses: _Records[str] = _Records(FREE_FAILURES_OF_ADDRESS, clock)
        self._sites: _Records[str] = _Records(FREE_FAILURES_OF_SITE, clock)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Names that have logged in from an address: failures of other names at that address do not delay them."""
        self._waiting: Counter[str] = Counter()
        self._ended = asyncio.Condition()

    @asynccontextmanager
    async def attempt(self, name: str, address: str) -> AsyncIterator[LoginAttempt]:
        """Wait until the attempt may begin, and count how it ends. `address` is empty if unknown.

        Raises:
            MeshError: TOO_MANY_LOGINS during a pause of the name at this address or of the address, or if too many attempts wait.
        """
        network = network_of(address)
        pair = name, network
        await self._turn(pair)
        self._pairs.begin(pair)
        for records, key in self._levels(network):
            records.begin(key)
        known = pair in self._known
        attempt = LoginAttempt(Requester(pair if known else site_of(network), known))
        try:
            yield attempt
        finally:
            self._count(pair, attempt.right)
            self._pairs.end(pair)
            for records, key in self._levels(network):
                records.end(key)
            async with self._ended:
                self._ended.notify_all()

    async def _turn(self, pair: tuple[str, str]) -> None:
        network = pair[1]
        self._refuse_pause(pair)
        if self._may_begin(pair):
            return
        if self._waiting[network] >= MAX_WAITING_OF_ADDRESS or self._waiting.total() >= MAX_WAITING:
            raise _too_many("too many logins at the same time", 2.0)
        self._waiting[network] += 1
        try:
            async with self._ended:
                while not self._may_begin(pair):
                    await self._ended.wait()
                    self._refuse_pause(pair)
        finally:
            self._waiting[network] -= 1
            if not self._waiting[network]:
                del self._waiting[network]

    def _may_begin(self, pair: tuple[str, str]) -> bool:
        network = pair[1]
        if self._addresses.running(network) >= MAX_AT_ONCE or not self._pairs.has_room(pair):
            return False
        return pair in self._known or all(records.has_room(key) for records, key in self._levels(network))

    def _refuse_pause(self, pair: tuple[str, str]) -> None:
        if (left := self._pairs.pause(pair)) > 0:
            raise _too_many("too many failed logins of this user from this address", left)
        if pair in self._known:
            return
        if (left := max(records.pause(key) for records, key in self._levels(pair[1]))) > 0:
            raise _too_many("too many failed logins from this address", left)

    def _count(self, pair: tuple[str, str], right: bool | None) -> None:
        if right:
            self._pairs.succeeded(pair)
            self._known[pair] = None
            self._known.move_to_end(pair)
            if len(self._known) > MAX_RECORDS:
                self._known.popitem(last=False)
        elif right is not None:
            self._pairs.failed(pair)
            for records, key in self._levels(pair[1]):
                records.failed(key)

    def _levels(self, network: str) -> list[tuple[_Records[str], str]]:
        """Return the records that count all names together: of the address, and for IPv6 of the wider network."""
        site = [(self._sites, site_of(network))] if ":" in network else []
        return [(self._addresses, network), *site]


def network_of(address: str) -> str:
    """Return the network that counts as one address: an IPv4 address, the network of an IPv6 host, or the whole loopback interface."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback:
        return _LOOPBACK
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.IPv6Network((parsed, _NETWORK_BITS), strict=False))


def site_of(network: str) -> str:
    """Return the wider network that one owner may have: /24 of IPv4, /48 of IPv6. The fair queue shares hashing between such networks."""
    try:
        parsed = ipaddress.ip_network(network)
    except ValueError:
        return network
    return str(parsed.supernet(new_prefix=24 if isinstance(parsed, ipaddress.IPv4Network) else 48))


def _too_many(why: str, left: float) -> MeshError:
    seconds = math.ceil(left)
    return MeshError(
        Reason.ERROR_REASON_TOO_MANY_LOGINS,
        why,
        {"retryAfterSeconds": seconds},
        retry_after=seconds,
    )
