"""A FAKE of what the gateway tells about users: everyone below is an administrator without a contract, so a token may do what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from llamesh.kit.errors import component_not_ready
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc

NAMES = ("ada", "admin", "bob", "cyn", "eve", "root")


def uid_of(username: str) -> str:
    """The uid that a user has here."""
    return f"usr_{username}"


class FakeStandings(gateway_pb2_grpc.StandingServiceServicer):
    """Users in memory; `put` and `remove` change them for everyone who watches."""

    def __init__(self) -> None:
        self.users = {
            name: gateway_pb2.Standing(uid=uid_of(name), username=name, role=gateway_pb2.ROLE_ADMIN, standing=1)
            for name in NAMES
        }
        self.count: int | None = None
        """What CountContractUsers says; None: what is true of the users here."""
        self.before_count: Callable[[], Awaitable[None]] | None = None
        """What happens before CountContractUsers is answered."""
        self._away = False
        self._queues: list[asyncio.Queue[gateway_pb2.WatchStandingsResponse]] = []

    def put(self, username: str, **fields: Any) -> None:
        """Change a user, or make one. Its earlier standing ends."""
        before = self.users.get(username)
        after = gateway_pb2.Standing(uid=uid_of(username), username=username, role=gateway_pb2.ROLE_ADMIN)
        if before:
            after.CopyFrom(before)
        after.standing += 1
        for name in fields:
            after.ClearField(name)
        after.MergeFrom(gateway_pb2.Standing(**fields))
        self.users[username] = after
        ended = [f"{before.uid}:{before.standing}"] if before else []
        self._tell(gateway_pb2.WatchStandingsResponse(users=[after], ended=ended))

    def remove(self, username: str) -> None:
        """Remove a user."""
        gone = self.users.pop(username)
        told = gateway_pb2.Standing(uid=gone.uid, deleted=True)
        self._tell(gateway_pb2.WatchStandingsResponse(users=[told], ended=[f"{gone.uid}:{gone.standing}"]))

    def go_away(self) -> None:
        """End all watches, and refuse every later one, with all users removed meanwhile."""
        self.users.clear()
        self._away = True
        self._tell(gateway_pb2.WatchStandingsResponse())

    def _tell(self, message: gateway_pb2.WatchStandingsResponse) -> None:
        for queue in self._queues:
            queue.put_nowait(message)

    async def WatchStandings(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.WatchStandingsResponse]:
        self._refuse_if_away()
        queue: asyncio.Queue[gateway_pb2.WatchStandingsResponse] = asyncio.Queue()
        self._queues.append(queue)
        try:
            yield gateway_pb2.WatchStandingsResponse(users=self.users.values(), synced=True)
            while True:
                message = await queue.get()
                self._refuse_if_away()
                yield message
        finally:
            self._queues.remove(queue)

    def _refuse_if_away(self) -> None:
        if self._away:
            raise component_not_ready("gateway")

    async def CountContractUsers(self, request: Any, context: Any) -> gateway_pb2.CountContractUsersResponse:
        if self.before_count is not None:
            await self.before_count()
        count = sum(user.contract_id == request.contract_id for user in self.users.values())
        return gateway_pb2.CountContractUsersResponse(users=count if self.count is None else self.count)
