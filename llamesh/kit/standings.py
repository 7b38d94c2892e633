"""Mirrors the present rights of users, which the gateway owns.

A standing is the version of a user's rights: it increases with each change of them, and a token has the standing at the time it was made.
See `Reflector` for the behaviour during an outage of the gateway.

Invariant: a removed user never returns: a later user of the same name has another uid.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc

from llamesh.kit.reflector import Reflector
from llamesh.v1 import gateway_pb2
from llamesh.v1.gateway_pb2_grpc import StandingServiceStub


@dataclass(frozen=True, slots=True)
class UserRights:
    """Present rights of a user."""

    uid: str
    username: str
    role: gateway_pb2.Role.ValueType
    contract_id: str = ""
    disabled: bool = False
    standing: int = 1
    create_time: float = 0.0
    """Seconds since 1970."""
    password_standing: int = 0
    """Standing since the last change of the password: tokens of earlier logins are invalid."""


def standing_id(uid: str, standing: int) -> str:
    """Return the id that all tokens of one standing of a user have in common."""
    return f"{uid}:{standing}"


class StandingReflector(Reflector[gateway_pb2.WatchStandingsResponse]):
    """Mirrors users and ended standings. Each change calls `on_change(users, ended)` with all users by uid and all ended standings."""

    def __init__(
        self, gateway: grpc.aio.Channel, on_change: Callable[[Mapping[str, UserRights], Iterable[str]], None]
    ) -> None:
        super().__init__("standings")
        self._stub = StandingServiceStub(gateway)
        self._on_change = on_change
        self._known: dict[str, UserRights] = {}
        self._ended: set[str] = set()
        self._listed: dict[str, UserRights] = {}
        self._listed_ended: set[str] = set()
        self._whole = False

    def _open(self) -> AsyncIterable[gateway_pb2.WatchStandingsResponse]:
        return self._stub.WatchStandings(gateway_pb2.WatchStandingsRequest(), wait_for_ready=True)

    def _begin(self) -> None:
        self._listed, self._listed_ended, self._whole = {}, set(), False

    def _take(self, message: gateway_pb2.WatchStandingsResponse) -> bool:
        """Process one message. A list takes effect only when it is complete: users may be missing from the first part."""
        users = self._known if self._whole else self._listed
        ended = self._ended if self._whole else self._listed_ended
        for user in message.users:
            if user.deleted:
                users.pop(user.uid, None)
            else:
                users[user.uid] = _user(user)
        ended.update(message.ended)
        if message.synced and not self._whole:
            self._known, self._ended, self._whole = self._listed, self._listed_ended, True
        if self._whole:
            self._on_change(self._known, self._ended)
        return self._whole


def _user(standing: gateway_pb2.Standing) -> UserRights:
    return UserRights(
        standing.uid,
        standing.username,
        standing.role,
        standing.contract_id,
        standing.disabled,
        standing.standing,
        standing.create_time.ToNanoseconds() / 1e9,
        standing.password_standing,
    )
