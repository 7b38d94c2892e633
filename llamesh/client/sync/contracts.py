# Written from aio/contracts.py by tools/sync_client.py; edit there.
"""Calls for contracts, which say what their holders may use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamesh.client.services import CONTRACT
from llamesh.client.sync.part import Part
from llamesh.v1 import contract_pb2


class Contracts(Part):
    """Creates, lists, changes and removes contracts."""

    def create(
        self, name: str, *, concurrent: int = 0, models: Sequence[str] = (), timeout: float | None = None
    ) -> contract_pb2.Contract:
        """Create a contract: concurrent requests (0: no limit) and names of models (none: all models)."""
        request = contract_pb2.CreateContractRequest(
            display_name=name, max_concurrent_requests=concurrent, models=models
        )
        return self._call(f"{CONTRACT}/CreateContract", request, contract_pb2.Contract, timeout)

    def list(self) -> Iterator[contract_pb2.Contract]:
        """All contracts."""
        request = contract_pb2.ListContractsRequest()
        return self.pages(f"{CONTRACT}/ListContracts", request, contract_pb2.ListContractsResponse, "contracts")

    def update(
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
        return self._call(f"{CONTRACT}/UpdateContract", request, contract_pb2.Contract, timeout)

    def delete(self, contract_id: str, *, timeout: float | None = None) -> contract_pb2.Contract:
        """Remove a contract to which no user and no key refers."""
        request = contract_pb2.DeleteContractRequest(contract_id=contract_id)
        return self._call(f"{CONTRACT}/DeleteContract", request, contract_pb2.Contract, timeout)
