# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""Calls for users, who can log in."""

from __future__ import annotations

from collections.abc import AsyncIterator

from llamesh.client.aio.part import AsyncPart
from llamesh.client.services import GATEWAY
from llamesh.v1 import gateway_pb2


class AsyncUsers(AsyncPart):
    """Creates, lists, changes and removes users."""

    async def create(
        self, username: str, password: str, *, role: str = "USER", contract: str = "", timeout: float | None = None
    ) -> gateway_pb2.User:
        """Create a user; the roles are INFERENCE, USER and ADMIN."""
        request = gateway_pb2.CreateUserRequest(
            username=username, password=password, role=gateway_pb2.Role.Value(f"ROLE_{role}"), contract_id=contract
        )
        return await self._call(f"{GATEWAY}/CreateUser", request, gateway_pb2.User, timeout)

    def list(self) -> AsyncIterator[gateway_pb2.User]:
        """Users by name."""
        request = gateway_pb2.ListUsersRequest()
        return self.pages(f"{GATEWAY}/ListUsers", request, gateway_pb2.ListUsersResponse, "users")

    async def update(
        self,
        username: str,
        *,
        password: str | None = None,
        old_password: str = "",
        role: str | None = None,
        contract: str | None = None,
        disabled: bool | None = None,
        timeout: float | None = None,
    ) -> gateway_pb2.User:
        """Change the given fields. A user's own password change needs the old one. All tokens of a disabled user are refused."""
        request = gateway_pb2.UpdateUserRequest(
            username=username,
            password=password,
            old_password=old_password,
            role=gateway_pb2.Role.Value(f"ROLE_{role}") if role else None,
            contract_id=contract,
            disabled=disabled,
        )
        return await self._call(f"{GATEWAY}/UpdateUser", request, gateway_pb2.User, timeout)

    async def delete(self, username: str, *, timeout: float | None = None) -> gateway_pb2.User:
        """Remove a user. All tokens and keys of the user become invalid."""
        request = gateway_pb2.DeleteUserRequest(username=username)
        return await self._call(f"{GATEWAY}/DeleteUser", request, gateway_pb2.User, timeout)
