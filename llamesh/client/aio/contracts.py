# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""Calls for contracts, which say what their holders may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from llamesh.client.aio.part import AsyncPart
from llamesh.client.services import CONTRACT
from llamesh.v1 import contract_pb2


class AsyncContracts(AsyncPart):
    """Creates, lists, changes and removes contracts."""

    async def create(
        self, name: str, *, concurrent: int = 0, models: Sequence[str] = (), timeout: float | None = None
    ) -> contract_pb2.Contract:
        """Create a contract: concurrent requests (0: no limit) and names of models (none: all models)."""
        request = contract_pb2.CreateContractRequest(
            display_name=name, max_concurrent_requests=concurrent, models=models
        )
        return await self._call(f"{CONTRACT}/CreateContract", request, contract_pb2.Contract, timeout)

    def list(self) -> AsyncIterator[contract_pb2.Contract]:
        """All contracts."""
        request = contract_pb2.ListContractsRequest()
        return self.pages(f"{CONTRACT}/ListContracts", request, contract_pb2.ListContractsResponse, "contracts")

    async def update(
        self,
        contract_id: str,
        *,
        name: str | None = None,
        concurrent: int | None = None,
        models: Sequence[str] = (),
        timeout: float | None = None,
    ) -> contract_pb2.Contract:
        """Change the given fields; the others keep their values."""
        request = contract_pb2.UpdateContractRequest(
            contract_id=contract_id, display_name=name, max_concurrent_requests=concurrent, models=models
        )
        return await self._call(f"{CONTRACT}/UpdateContract", request, contract_pb2.Contract, timeout)

    async def delete(self, contract_id: str, *, timeout: float | None = None) -> contract_pb2.Contract:
        """Remove a contract to which no user and no key refers."""
        request = contract_pb2.DeleteContractRequest(contract_id=contract_id)
        return await self._call(f"{CONTRACT}/DeleteContract", request, contract_pb2.Contract, timeout)
