# Written from aio/keys.py by tools/sync_client.py; edit there.
"""Calls for keys, which are tokens for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamesh.client.services import CONTRACT
from llamesh.client.sync.part import Part
from llamesh.v1 import contract_pb2


class Keys(Part):
    """Creates, lists and revokes keys."""

    def create(
        self, name: str, *, scopes: Sequence[str] = (), contract: str = "", days: int = 0, timeout: float | None = None
    ) -> contract_pb2.CreateKeyResponse:
        """Create a key. The answer contains its token, which the mesh never shows again."""
        request = contract_pb2.CreateKeyRequest(
            display_name=name, scopes=scopes, contract_id=contract, expire_days=days
        )
        return self._call(f"{CONTRACT}/CreateKey", request, contract_pb2.CreateKeyResponse, timeout)

    def list(self) -> Iterator[contract_pb2.Key]:
        """Return the caller's keys; an administrator gets all keys."""
        request = contract_pb2.ListKeysRequest()
        return self.pages(f"{CONTRACT}/ListKeys", request, contract_pb2.ListKeysResponse, "keys")

    def revoke(self, key_id: str, *, timeout: float | None = None) -> contract_pb2.Key:
        """End a key, and all keys that were made with it."""
        request = contract_pb2.RevokeKeyRequest(key_id=key_id)
        return self._call(f"{CONTRACT}/RevokeKey", request, contract_pb2.Key, timeout)
