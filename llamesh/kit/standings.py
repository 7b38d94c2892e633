"""What users may do now, as the gateway tells it. See `Reflector` for what holds while the gateway is away.

Invariant: a user that was removed is never known again: a later one of the same name has another uid.
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
    """A user as it is now."""

    uid: str
    username: str
    role: gateway_pb2.Role.ValueType
    contract_id: str = ""
    disabled: bool = False
    standing: int = 1
    create_time: float = 0.0
    """Seconds since 1970."""
    password_standing: int = 0
    """The standing since the last new password: logins that are older do not count."""


def standing_id(uid: str, standing: int) -> str:
    """What the tokens that were made with one standing of a user have in common."""
    return f"{uid}:{standing}"


class StandingReflector(Reflector[gateway_pb2.WatchStandingsResponse]):
    """Watches, until closed. `on_change(users, ended)` is called with all users by uid and all ended standings whenever they change."""

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
        """Before the list is whole nothing of it counts: who is missing may come later, and who has less rights may have more."""
        users = self._known if self._whole else self._listed
        ended = self._ended if self._whole else self._listed_ended
        for told in message.users:
            if told.deleted:
                users.pop(told.uid, None)
            else:
                users[told.uid] = _user(told)
        ended.update(message.ended)
        if message.synced and not self._whole:
            self._known, self._ended, self._whole = self._listed, self._listed_ended, True
        if self._whole:
            self._on_change(self._known, self._ended)
        return self._whole


def _user(told: gateway_pb2.Standing) -> UserRights:
    return UserRights(
        told.uid,
        told.username,
        told.role,
        told.contract_id,
        told.disabled,
        told.standing,
        told.create_time.ToNanoseconds() / 1e9,
        told.password_standing,
    )
