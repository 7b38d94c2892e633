"""Stubs of the other services, each with one channel. A call waits while its service restarts, up to the deadline."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2_grpc

from llamesh.kit.channels import DEADLINE, asking, call_options, channel
from llamesh.kit.config import Settings
from llamesh.names import GATEWAY
from llamesh.v1 import (
    admission_pb2_grpc,
    contract_pb2,
    contract_pb2_grpc,
    controller_pb2_grpc,
    download_pb2_grpc,
    metrics_pb2_grpc,
)


class Members:
    """Stubs of the other members."""

    contract: contract_pb2_grpc.ContractServiceAsyncStub
    admission: admission_pb2_grpc.AdmissionServiceAsyncStub
    catalogue: download_pb2_grpc.CatalogueServiceAsyncStub
    controller: controller_pb2_grpc.ControllerServiceAsyncStub
    health: dict[str, health_pb2_grpc.HealthStub]
    """grpc.health of each member by name."""
    metrics: dict[str, metrics_pb2_grpc.MetricsServiceAsyncStub]
    """The metrics of each member by name."""

    def __init__(self, settings: Settings) -> None:
        self.channels: dict[str, grpc.aio.Channel] = {
            name: channel(settings, name, GATEWAY)
            for name in ("contract", "download", "controller", *(("quant",) if settings.quant else ()))
        }
        """Channels by name of the member."""
        self.over_tcp = bool(settings.member_addresses)
        """Whether members have certificates, because some have an address."""
        self.contract = contract_pb2_grpc.ContractServiceStub(self.channels["contract"])
        self.admission = admission_pb2_grpc.AdmissionServiceStub(self.channels["contract"])
        self.catalogue = download_pb2_grpc.CatalogueServiceStub(self.channels["download"])
        self.controller = controller_pb2_grpc.ControllerServiceStub(self.channels["controller"])
        self.health = {name: health_pb2_grpc.HealthStub(own) for name, own in self.channels.items()}
        self.metrics = {name: metrics_pb2_grpc.MetricsServiceStub(own) for name, own in self.channels.items()}

    async def know_contract(self, contract_id: str, deadline: float = DEADLINE) -> None:
        """Raise CONTRACT_NOT_FOUND if the contract does not exist or is being removed. An empty id means no contract."""
        if contract_id:
            request = contract_pb2.GetContractRequest(contract_id=contract_id)
            with asking("contract"):
                await self.contract.GetContract(request, **call_options(deadline))

    async def close(self) -> None:
        """Close all channels and cancel their calls."""
        await asyncio.gather(*(own.close() for own in self.channels.values()))
