# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""Calls for keys, which are tokens for programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from llamesh.client.aio.part import AsyncPart
from llamesh.client.services import CONTRACT
from llamesh.v1 import contract_pb2


class AsyncKeys(AsyncPart):
    """Creates, lists and revokes keys."""

    async def create(
        self, name: str, *, scopes: Sequence[str] = (), contract: str = "", days: int = 0, timeout: float | None = None
    ) -> contract_pb2.CreateKeyResponse:
        """Create a key. The answer contains its token, which the mesh never shows again."""
        request = contract_pb2.CreateKeyRequest(
            display_name=name, scopes=scopes, contract_id=contract, expire_days=days
        )
        return await self._call(f"{CONTRACT}/CreateKey", request, contract_pb2.CreateKeyResponse, timeout)

    def list(self) -> AsyncIterator[contract_pb2.Key]:
        """Return the caller's keys; an administrator gets all keys."""
        request = contract_pb2.ListKeysRequest()
        return self.pages(f"{CONTRACT}/ListKeys", request, contract_pb2.ListKeysResponse, "keys")

    async def revoke(self, key_id: str, *, timeout: float | None = None) -> contract_pb2.Key:
        """End a key, and all keys that were made with it."""
        request = contract_pb2.RevokeKeyRequest(key_id=key_id)
        return await self._call(f"{CONTRACT}/RevokeKey", request, contract_pb2.Key, timeout)
