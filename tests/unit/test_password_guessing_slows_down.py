"""The login throttle: free failures, then growing pauses with an end, by name and address; counted before the password is checked."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.kit.errors import MeshError, Reason
from services.gateway import throttle as module
from services.gateway.fair_queue import Requester
from services.gateway.throttle import (
    FORGOTTEN_AFTER,
    FREE_FAILURES,
    FREE_FAILURES_OF_ADDRESS,
    FREE_FAILURES_OF_SITE,
    MAX_AT_ONCE,
    MAX_PAUSE,
    MAX_WAITING_OF_ADDRESS,
    Throttle,
    network_of,
    site_of,
)

HOME, STRANGER = "192.0.2.1", "198.51.100.7"


class Clock:
    """A clock that a test turns."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


class Door:
    """A throttle, and what a login does with it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.throttle = Throttle(self.clock)
        self.checked = 0
        self.hashing = asyncio.Event()
        self.hashing.set()

    async def login(self, name: str = "ada", address: str = HOME, *, right: bool = False) -> float:
        """Try a password; seconds to wait where it was not even checked."""
        try:
            async with self.throttle.attempt(name, address) as attempt:
                self.checked += 1
                await self.hashing.wait()
                attempt.right = right
        except MeshError as error:
            return error.retry_after or 0.0
        return 0.0


async def test_pauses_double_up_to_the_longest() -> None:
    door = Door()
    pauses = []
    for _ in range(14):
        assert await door.login() == 0
        pauses.append(await door.login() if door.throttle._pairs.pause(("ada", HOME)) > 0 else 0.0)
        door.clock.time += pauses[-1]
    assert pauses == [0] * (FREE_FAILURES - 1) + [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert max(pauses) == MAX_PAUSE


async def test_the_wait_is_told_in_whole_seconds_and_never_zero() -> None:
    door = Door()
    for _ in range(FREE_FAILURES):
        await door.login()
    door.clock.time += 0.9
    with pytest.raises(MeshError) as caught:
        async with door.throttle.attempt("ada", HOME):
            pass
    assert caught.value.reason == Reason.ERROR_REASON_TOO_MANY_LOGINS
    assert caught.value.metadata == {"retryAfterSeconds": 1}


async def test_a_stranger_never_makes_the_owner_wait_elsewhere() -> None:
    door = Door()
    for _ in range(200):
        await door.login("admin", STRANGER)
        door.clock.time += 1
    assert await door.login("admin", STRANGER) > 0
    assert await door.login("admin", HOME, right=True) == 0


async def test_guesses_at_once_are_no_more_than_guesses_one_after_the_other() -> None:
    door = Door()
    door.hashing.clear()
    guesses = [asyncio.ensure_future(door.login("admin", STRANGER)) for _ in range(34)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    door.hashing.set()
    refused = await asyncio.gather(*guesses)
    assert door.checked == FREE_FAILURES
    assert sum(wait > 0 for wait in refused) == 34 - FREE_FAILURES


async def test_right_passwords_at_once_wait_for_each_other_and_all_pass() -> None:
    door = Door()
    assert set(await asyncio.gather(*(door.login(right=True) for _ in range(30)))) == {0.0}
    assert door.checked == 30


async def test_one_address_takes_few_of_the_turns_for_hashing_and_waits_in_bounded_number() -> None:
    door = Door()
    door.hashing.clear()
    flood = [
        asyncio.ensure_future(door.login(f"n{i}", STRANGER, right=True))
        for i in range(MAX_AT_ONCE + MAX_WAITING_OF_ADDRESS + 9)
    ]
    for _ in range(3):
        await asyncio.sleep(0)
    assert door.checked == MAX_AT_ONCE
    owner = asyncio.ensure_future(door.login("admin", HOME, right=True))
    for _ in range(3):
        await asyncio.sleep(0)
    assert door.checked == MAX_AT_ONCE + 1
    door.hashing.set()
    assert await owner == 0
    assert sum(wait > 0 for wait in await asyncio.gather(*flood)) == 9


async def test_one_password_for_many_names_slows_the_address_but_not_its_known_users() -> None:
    door = Door()
    await door.login("ada", HOME, right=True)
    for number in range(FREE_FAILURES_OF_ADDRESS):
        assert await door.login(f"name{number}", HOME) == 0
    assert await door.login("another", HOME) > 0
    assert await door.login("ada", HOME, right=True) == 0
    assert await door.login("another", STRANGER) == 0


async def test_an_own_account_does_not_wash_the_address_clean() -> None:
    door = Door()
    for number in range(FREE_FAILURES_OF_ADDRESS):
        await door.login(f"name{number}", STRANGER)
        await door.login("eve", STRANGER, right=True)
    assert await door.login("another", STRANGER) > 0


async def test_a_right_password_makes_a_clean_slate_and_names_are_apart() -> None:
    door = Door()
    for _ in range(FREE_FAILURES):
        await door.login("ada")
    assert await door.login("bob") == 0
    assert await door.login("ada") > 0
    door.clock.time += 1
    assert await door.login("ada", right=True) == 0
    assert await door.login("ada") == 0


async def test_old_failures_are_forgotten() -> None:
    door = Door()
    for _ in range(FREE_FAILURES):
        await door.login()
    door.clock.time += FORGOTTEN_AFTER + 1
    assert [await door.login() for _ in range(FREE_FAILURES)] == [0] * FREE_FAILURES


async def test_an_attempt_that_ends_without_an_answer_does_not_count() -> None:
    door = Door()
    for _ in range(3 * FREE_FAILURES):
        with pytest.raises(RuntimeError):
            async with door.throttle.attempt("ada", HOME):
                raise RuntimeError("the database is away")
    assert await door.login() == 0


async def test_cancelled_attempts_leave_nothing_behind() -> None:
    door = Door()
    door.hashing.clear()
    waiting = [asyncio.ensure_future(door.login(right=True)) for _ in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    kept = (door.throttle._pairs, door.throttle._addresses, door.throttle._sites)
    assert ([len(each) for each in kept], door.throttle._waiting.total()) == ([0, 0, 0], 0)


async def test_strangers_names_and_addresses_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 100)
    door = Door()
    for number in range(300):
        await door.login(f"name{number}", f"2001:db8:{number:x}::1")
        await door.login(f"name{number}", f"2001:db8:{number:x}::1", right=True)
        await door.login(f"name{number}", f"2001:db8:{number:x}::1")
    throttle = door.throttle
    kept = (throttle._pairs, throttle._addresses, throttle._sites, throttle._known)
    assert [len(each) for each in kept] == [100, 100, 100, 100]


async def test_attempts_that_are_refused_push_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 50)
    door = Door()
    for _ in range(FREE_FAILURES):
        await door.login("ada", HOME)
    for number in range(FREE_FAILURES_OF_ADDRESS):
        await door.login(f"first{number}", STRANGER)
    for number in range(200):
        assert await door.login(f"name{number}", STRANGER) > 0
    assert await door.login("ada", HOME) > 0


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, counts_as: str) -> None:
    assert network_of(address) == counts_as


async def test_many_ipv6_networks_of_one_owner_do_not_get_free_guesses_each() -> None:
    door = Door()
    addresses = [f"2001:db8:1:{number:x}::1" for number in range(2 * FREE_FAILURES_OF_SITE)]
    for address in addresses:
        await door.login("admin", address)
    assert door.checked == FREE_FAILURES_OF_SITE
    assert await door.login("admin", "2001:db8:2::1") == 0
    assert await door.login("admin", HOME) == 0


async def test_a_known_user_does_not_wait_for_failures_of_others_in_the_network() -> None:
    door = Door()
    await door.login("ada", "2001:db8:1::1", right=True)
    for number in range(1, FREE_FAILURES_OF_SITE + 1):
        await door.login("admin", f"2001:db8:1:{number:x}::1")
    assert await door.login("bob", "2001:db8:1:ffff::1") > 0
    assert await door.login("ada", "2001:db8:1::1", right=True) == 0


@pytest.mark.parametrize(
    ("address", "site"),
    [("192.0.2.1", "192.0.2.0/24"), ("2001:db8:1:2::1", "2001:db8:1::/48"), ("127.0.0.1", "loopback"), ("", "")],
)
def test_strangers_share_the_turns_of_a_wider_network(address: str, site: str) -> None:
    assert site_of(network_of(address)) == site


async def test_a_user_who_has_logged_in_from_an_address_has_turns_of_its_own() -> None:
    door = Door()
    async with door.throttle.attempt("ada", HOME) as attempt:
        assert attempt.requester == Requester("192.0.2.0/24", known=False)
    await door.login("ada", HOME, right=True)
    async with door.throttle.attempt("ada", HOME) as attempt:
        assert attempt.requester == Requester(("ada", HOME), known=True)
    async with door.throttle.attempt("ada", STRANGER) as attempt:
        assert not attempt.requester.known


LOOPBACK = ("127.0.0.1", "127.1.0.60", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:127.9.9.9")


def test_all_addresses_of_the_loopback_interface_count_as_one() -> None:
    assert len({network_of(address) for address in LOOPBACK}) == 1
    assert network_of("::2") != network_of("::1")


async def test_a_neighbour_on_the_machine_gets_no_free_guesses_by_changing_its_address() -> None:
    door = Door()
    for number in range(FREE_FAILURES):
        assert await door.login("admin", f"127.1.0.{number}") == 0
    for address in LOOPBACK:
        assert await door.login("admin", address) > 0
    assert door.checked == FREE_FAILURES
