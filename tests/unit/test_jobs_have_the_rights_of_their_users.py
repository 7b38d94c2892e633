"""Whether a job may go on, decided by the present rights of the user whose rights it has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from llamesh.kit.errors import name_of
from llamesh.kit.rights import Rights
from llamesh.kit.standings import UserRights
from llamesh.v1.gateway_pb2 import ROLE_ADMIN, ROLE_INFERENCE, ROLE_USER, Role
from services.quant.submitters import refusal


@dataclass
class Started:
    """The fields of a job that decide."""

    owner: str = "ada"
    requester_uid: str = "usr_1"
    create_time: datetime = datetime(2026, 1, 1, tzinfo=UTC)


def rights_with(*users: UserRights) -> Rights:
    rights = Rights()
    rights.take_users({user.uid: user for user in users})
    return rights


@pytest.mark.parametrize("role", [ROLE_USER, ROLE_ADMIN])
def test_a_job_of_a_user_who_may_manage_goes_on(role: Role.ValueType) -> None:
    assert refusal(Started(), rights_with(UserRights("usr_1", "ada", role))) is None


def test_every_job_goes_on_until_the_users_are_known() -> None:
    assert refusal(Started(), Rights()) is None


@pytest.mark.parametrize(
    ("users", "reason", "words"),
    [
        ([UserRights("usr_1", "ada", ROLE_USER, disabled=True)], "USER_DISABLED", "the user ada, .* is disabled"),
        ([], "USER_NOT_FOUND", "was removed"),
        # A later user of the same name is another user.
        ([UserRights("usr_2", "ada", ROLE_USER)], "USER_NOT_FOUND", "was removed"),
        ([UserRights("usr_1", "ada", ROLE_INFERENCE)], "SCOPE_MISSING", "may not run jobs any more"),
    ],
)
def test_a_job_of_a_user_without_the_right_is_refused(users: list[UserRights], reason: str, words: str) -> None:
    error = refusal(Started(), rights_with(*users))
    assert error is not None
    assert name_of(error.reason) == reason
    with pytest.raises(type(error), match=words):
        raise error
