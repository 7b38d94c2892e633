"""Slows down guessing of passwords: after some failures a user name must wait at the address that failed, and so must the address.

Invariant: nobody is kept out by what happens at other addresses, nor for good (fair_queue.py shares out the turns for hashing). An attempt
counts before its password is checked, so that many at once are no more guesses than one after the other. Memory is bounded, whatever
names strangers send.
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
"""Failures of a name at an address that cost nothing: people mistype."""

FREE_FAILURES_OF_ADDRESS = 20
"""Failures of all names at an address that cost nothing: people share addresses."""

FREE_FAILURES_OF_SITE = 100
"""Failures of all addresses of a /48 of IPv6 that cost nothing: one owner may have it all, or share it."""

FIRST_PAUSE = 1.0
"""Seconds to wait after the first failure too many; doubled by each further one."""

LONGEST_PAUSE = 60.0
"""Seconds to wait at most."""

FORGOTTEN_AFTER = 900.0
"""Seconds without a failure after which earlier ones count no more."""

REMEMBERED = 10_000
"""Names at addresses, and addresses, that are remembered; the one tried longest ago is forgotten first."""

AT_ONCE = 4
"""Passwords of one address that are checked, or wait for their turn to be hashed, at the same time: a stranger does not fill the queue."""

WAITING_OF_ADDRESS = 32
"""Attempts of one address that may wait for that; more are refused."""

WAITING = 1000
"""Attempts that may wait in all."""

_NETWORK_BITS = 64
"""An IPv6 host has that much of an address to itself: a network counts as one."""

_LOOPBACK = "loopback"
"""Whoever has an account on this machine has all addresses of its loopback interface: they count as one."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Record:
    failures: int = 0
    last_failure: float = 0.0
    free_at: float = 0.0
    running: int = 0


class _Records(Generic[Key]):
    """Failures by some key, `free` of which cost nothing. `clock` gives seconds that never go back."""

    def __init__(self, free: int, clock: Callable[[], float]) -> None:
        self._free = free
        self._clock = clock
        self._records: OrderedDict[Key, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def running(self, key: Key) -> int:
        """Attempts that have begun and not ended."""
        return self._look(key).running

    def pause(self, key: Key) -> float:
        """Seconds that must pass before the next attempt."""
        return self._look(key).free_at - self._clock()

    def has_room(self, key: Key) -> bool:
        """Whether one more attempt may begin: if all that run fail, there is no failure more than is free."""
        record = self._look(key)
        return record.running < max(1, self._free - record.failures)

    def begin(self, key: Key) -> None:
        self._keep(key).running += 1

    def failed(self, key: Key) -> None:
        record = self._keep(key)
        record.failures += 1
        record.last_failure = self._clock()
        if record.failures >= self._free:
            pause = FIRST_PAUSE * 2.0 ** min(record.failures - self._free, 32)
            record.free_at = record.last_failure + min(pause, LONGEST_PAUSE)

    def succeeded(self, key: Key) -> None:
        record = self._keep(key)
        record.failures, record.free_at = 0, 0.0

    def end(self, key: Key) -> None:
        """An attempt has ended; nothing is kept of one without failures."""
        record = self._keep(key)
        record.running = max(0, record.running - 1)
        if not record.running and not record.failures:
            del self._records[key]

    def _look(self, key: Key) -> _Record:
        """What is known, without keeping anything: attempts that are refused push no record out."""
        record = self._records.get(key)
        if record is None:
            return _Record()
        if record.failures and self._clock() - record.last_failure > FORGOTTEN_AFTER:
            record.failures = 0
        return record

    def _keep(self, key: Key) -> _Record:
        record = self._records[key] = self._look(key)
        self._records.move_to_end(key)
        if len(self._records) > REMEMBERED:
            self._records.popitem(last=False)
        return record


@dataclass(slots=True)
class Attempt:
    """One attempt to log in; it is neither a success nor a failure until `right` is set."""

    requester: Requester
    """Who waits for its password to be hashed."""
    right: bool | None = None
    """Whether the password was right."""


class Throttle:
    """Admits attempts by name and address. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pairs: _Records[tuple[str, str]] = _Records(FREE_FAILURES, clock)
        self._addresses: _Records[str] = _Records(FREE_FAILURES_OF_ADDRESS, clock)
        self._sites: _Records[str] = _Records(FREE_FAILURES_OF_SITE, clock)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Names that have logged in from an address: what others do there does not make them wait."""
        self._waiting: Counter[str] = Counter()
        self._ended = asyncio.Condition()

    @asynccontextmanager
    async def attempt(self, name: str, address: str) -> AsyncIterator[Attempt]:
        """Let an attempt begin, once those before it leave room, and count how it ends. `address` empty: not known.

        Raises:
            MeshError: TOO_MANY_LOGINS while the name must wait at this address, or the address must, or too many wait already.
        """
        network = network_of(address)
        pair = name, network
        await self._turn(pair)
        self._pairs.begin(pair)
        for records, key in self._levels(network):
            records.begin(key)
        known = pair in self._known
        attempt = Attempt(Requester(pair if known else site_of(network), known))
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
        if self._waiting[network] >= WAITING_OF_ADDRESS or self._waiting.total() >= WAITING:
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
        if self._addresses.running(network) >= AT_ONCE or not self._pairs.has_room(pair):
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
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        elif right is not None:
            self._pairs.failed(pair)
            for records, key in self._levels(pair[1]):
                records.failed(key)

    def _levels(self, network: str) -> list[tuple[_Records[str], str]]:
        """Where an attempt counts for all names: its address, and for IPv6 the wider network around it."""
        site = [(self._sites, site_of(network))] if ":" in network else []
        return [(self._addresses, network), *site]


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, the network of an IPv6 host, or all of the loopback interface."""
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
    """A wider network, which one owner may have: /24 of IPv4, /48 of IPv6. Strangers of one take turns with those of others."""
    try:
        parsed = ipaddress.ip_network(network)
    except ValueError:
        return network
    return str(parsed.supernet(new_prefix=24 if isinstance(parsed, ipaddress.IPv4Network) else 48))


def _too_many(why: str, left: float) -> MeshError:
    seconds = math.ceil(left)
    return MeshError(
        Reason.ERROR_REASON_TOO_MANY_LOGINS,
        f"{why}; try again in {seconds} s",
        {"retryAfterSeconds": seconds},
        retry_after=left,
    )
