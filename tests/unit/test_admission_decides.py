"""Admission of inference requests, without Envoy and without a database: what is admitted, refused, noted and freed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from llamesh.kit.errors import MeshError, name_of
from llamesh.kit.identity import Identity
from llamesh.kit.rights import Rights
from llamesh.kit.standings import UserRights
from llamesh.v1.gateway_pb2 import ROLE_USER
from services.contract.admission import Admission
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.decisions import RecordedDecision
from services.contract.grants import Terms
from services.contract.settlement import TokenUsage
from services.contract.usage import Account

ACCOUNT = Account("2026-11-24", "ada", "smol", "ctr_key", "usr_1")


@dataclass
class Books:
    """FAKE of the terms cache, the ledger and the decisions: plain values in memory."""

    terms: dict[str, Terms] = field(default_factory=dict)
    usage: list[TokenUsage] = field(default_factory=list)
    noted: list[RecordedDecision] = field(default_factory=list)

    async def get(self, contract_id: str) -> Terms | None:
        return self.terms.get(contract_id)

    def add(self, account: Account, usage: TokenUsage) -> None:
        self.usage.append(usage)

    def enqueue(self, decision: RecordedDecision) -> None:
        self.noted.append(decision)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def limiter() -> ConcurrencyLimiter:
    return ConcurrencyLimiter(lambda: 0.0)


@pytest.fixture
def admission(books: Books, limiter: ConcurrencyLimiter) -> Admission:
    rights = Rights()
    rights.take_users({"usr_1": UserRights("usr_1", "ada", ROLE_USER, contract_id="ctr_user")})
    rights.take_revoked({"key_revoked"})
    fake = cast("Any", books)
    return Admission(limiter, fake, rights, fake, fake)


def key(token_id: str = "key_1") -> Identity:
    """A key of ada that carries a contract of its own."""
    return Identity(subject="ada", scopes=frozenset({"infer:*"}), contract_id="ctr_key", token_id=token_id, uid="usr_1")


async def reason(admission: Admission, identity: Identity, target: str = "smol", permit: str = "r1") -> str:
    """The reason that a request is refused with; empty if it is admitted."""
    try:
        await admission.admit(identity, target, permit)
    except MeshError as error:
        return name_of(error.reason)
    return ""


async def test_a_request_counts_against_the_contracts_of_key_and_user_until_it_is_settled(
    admission: Admission, books: Books, limiter: ConcurrencyLimiter
) -> None:
    books.terms = {"ctr_key": Terms("ctr_key", ("*",), 2), "ctr_user": Terms("ctr_user", ("*",), 1)}
    assert await reason(admission, key()) == ""
    assert (limiter.in_flight("ctr_key"), limiter.in_flight("ctr_user")) == (1, 1)
    assert await reason(admission, key(), permit="r2") == "CONCURRENCY_EXCEEDED"
    assert (limiter.in_flight("ctr_key"), limiter.in_flight("ctr_user")) == (1, 1)
    (noted,) = books.noted
    assert (noted.subject, noted.object, noted.contract_id) == ("ada", "smol", "ctr_user")
    admission.end("r1", ACCOUNT, TokenUsage(3, 4))
    assert (limiter.in_flight("ctr_key"), limiter.in_flight("ctr_user")) == (0, 0)
    assert books.usage == [TokenUsage(3, 4)]


async def test_a_request_on_which_no_engine_worked_frees_its_permit_and_costs_nothing(
    admission: Admission, books: Books, limiter: ConcurrencyLimiter
) -> None:
    books.terms = {"ctr_key": Terms("ctr_key", ("*",), 2), "ctr_user": Terms("ctr_user")}
    assert await reason(admission, key()) == ""
    admission.end("r1", ACCOUNT, None)
    assert (limiter.in_flight("ctr_key"), books.usage) == (0, [])


@pytest.mark.parametrize("narrow", ["ctr_key", "ctr_user"])
async def test_a_model_must_be_granted_by_both_contracts(
    admission: Admission, books: Books, limiter: ConcurrencyLimiter, narrow: str
) -> None:
    books.terms = {"ctr_key": Terms("ctr_key", ("*",), 2), "ctr_user": Terms("ctr_user")}
    books.terms[narrow] = Terms(narrow, ("phi",), 2)
    assert await reason(admission, key()) == "MODEL_NOT_IN_CONTRACT"
    assert books.noted[0].refusals[0].metadata == {"contractId": narrow, "model": "smol", "granted": "phi"}
    assert limiter.in_flight(narrow) == 0
    assert await reason(admission, key(), target="phi") == ""
    assert await admission.listing_scopes(key()) == ["infer:phi"]


async def test_a_contract_that_was_deleted_allows_nothing(admission: Admission, books: Books) -> None:
    books.terms = {"ctr_key": Terms("ctr_key")}
    assert await reason(admission, key()) == "CONTRACT_NOT_FOUND"
    assert await admission.listing_scopes(key()) == []


async def test_a_revoked_key_is_refused_and_not_noted(admission: Admission, books: Books) -> None:
    books.terms = {"ctr_key": Terms("ctr_key"), "ctr_user": Terms("ctr_user")}
    assert await reason(admission, key("key_revoked")) == "UNAUTHENTICATED"
    assert books.noted == []
