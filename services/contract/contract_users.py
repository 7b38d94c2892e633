"""The users that have a contract, as the gateway counts them."""

from __future__ import annotations

from llamesh.kit.channels import asking, call_options
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc


class ContractUsers:
    """Asks the gateway, which owns the users."""

    def __init__(self, gateway: gateway_pb2_grpc.StandingServiceAsyncStub) -> None:
        self._gateway = gateway

    async def count(self, contract_id: str) -> int:
        """Return how many users have a contract now. Raises COMPONENT_UNAVAILABLE if the gateway does not answer."""
        request = gateway_pb2.CountContractUsersRequest(contract_id=contract_id)
        with asking("gateway"):
            return (await self._gateway.CountContractUsers(request, **call_options())).users
