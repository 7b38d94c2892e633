"""Password hashes: argon2id at its library's cost, the same work for users who do not exist, renewed when costs rise, few at once."""

from __future__ import annotations

import asyncio

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from llamesh.kit.errors import MeshError, Reason
from services.gateway.fair_queue import Requester
from services.gateway.passwords import MAX_AT_ONCE, MAX_WAITING, Passwords

CHEAP = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


class CountingHasher:
    """Counts verifications; hashes cheaply."""

    def __init__(self) -> None:
        self.verified: list[str] = []
        self.running = 0
        self.most = 0

    def hash(self, password: str) -> str:
        return CHEAP.hash(password)

    def verify(self, kept: str, password: str) -> bool:
        self.running += 1
        self.most = max(self.most, self.running)
        self.verified.append(kept)
        try:
            return CHEAP.verify(kept, password)
        finally:
            self.running -= 1

    def check_needs_rehash(self, kept: str) -> bool:
        return CHEAP.check_needs_rehash(kept)


async def test_hashes_are_argon2id_at_a_cost_that_guessing_feels() -> None:
    kept = await Passwords().hash("correct horse")
    costs = extract_parameters(kept)
    assert costs.type is Type.ID
    assert costs.memory_cost >= 19 * 1024
    assert costs.time_cost >= 2
    assert "correct horse" not in kept


async def test_a_right_password_is_told_from_a_wrong_one() -> None:
    passwords = Passwords(CHEAP)
    kept = await passwords.hash("correct horse")
    assert await passwords.check("correct horse", kept) == kept
    for wrong in ("Correct horse", "correct horse ", ""):
        assert await passwords.check(wrong, kept) is None
    assert await passwords.check("correct horse", "damaged") is None


async def test_a_user_who_does_not_exist_costs_the_same_and_is_never_right() -> None:
    passwords = Passwords(hasher := CountingHasher())  # type: ignore[arg-type]
    assert await passwords.check("the password of nobody", None) is None
    assert len(hasher.verified) == 1


async def test_a_hash_of_lower_cost_is_renewed_at_login() -> None:
    old = PasswordHasher(time_cost=1, memory_cost=512, parallelism=1).hash("correct horse")
    renewed = await Passwords(CHEAP).check("correct horse", old)
    assert renewed is not None
    assert extract_parameters(renewed).memory_cost == 1024


async def test_few_hashes_run_at_once_and_a_flood_is_refused() -> None:
    passwords = Passwords(hasher := CountingHasher())  # type: ignore[arg-type]
    kept = await passwords.hash("correct horse")
    flood = MAX_AT_ONCE + MAX_WAITING + 10
    answers = await asyncio.gather(
        *(passwords.check("correct horse", kept) for _ in range(flood)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, MeshError)]
    assert len(refused) == 10
    assert {error.reason for error in refused} == {Reason.ERROR_REASON_TOO_MANY_LOGINS}
    assert answers.count(kept) == flood - 10
    assert hasher.most <= MAX_AT_ONCE
    with pytest.raises(MeshError) as caught:
        await asyncio.gather(*(passwords.check("x", kept) for _ in range(flood)))
    assert caught.value.retry_after == 2


async def test_a_stranger_with_many_addresses_does_not_keep_a_user_from_logging_in() -> None:
    passwords = Passwords(hasher := CountingHasher())  # type: ignore[arg-type]
    kept = await passwords.hash("correct horse")
    flood = [asyncio.ensure_future(passwords.check("x", kept, Requester(number, known=False))) for number in range(200)]
    await asyncio.sleep(0)
    assert await passwords.check("correct horse", kept, Requester("owner", known=True)) == kept
    assert len(hasher.verified) < 20
    refused = await asyncio.gather(*flood, return_exceptions=True)
    assert any(isinstance(each, MeshError) for each in refused)


async def test_a_stranger_with_one_wide_network_does_not_keep_a_new_user_from_logging_in() -> None:
    passwords = Passwords(hasher := CountingHasher())  # type: ignore[arg-type]
    kept = await passwords.hash("correct horse")
    flood = [asyncio.ensure_future(passwords.check("x", kept, Requester("stranger", known=False))) for _ in range(200)]
    await asyncio.sleep(0)
    assert await passwords.check("correct horse", kept, Requester("owner", known=False)) == kept
    assert len(hasher.verified) < 20
    await asyncio.gather(*flood, return_exceptions=True)
