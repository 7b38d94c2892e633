"""The real contract service on its socket, with labelled fakes of other members on theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.rights import Rights
from llamesh.kit.serving import Member
from llamesh.v1 import (
    admission_pb2_grpc,
    contract_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    download_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    model_pb2,
    server_pb2,
)
from services.contract.service import run
from tests.standings import FakeStandings

MIB = 1 << 20

MODEL = model_pb2.Model(
    model_uuid="smol",
    name="smol.gguf",
    size_bytes=98 * MIB,
    gguf=model_pb2.GgufMetadata(
        architecture="llama",
        quantisation="Q4_K_M",
        tensor_bytes=96 * MIB,
        context_length=8192,
        layer_count=30,
        head_count=9,
        kv_head_count=3,
        key_length=64,
        value_length=64,
        embedding_length=576,
        vocabulary_size=49152,
    ),
)
MAPPED_MODEL = model_pb2.Model()
"""The same with weights that engines share."""
MAPPED_MODEL.CopyFrom(MODEL)
MAPPED_MODEL.model_uuid = "smol-q8"
MAPPED_MODEL.gguf.quantisation = "Q8_0"
DRAFT, STRANGER = model_pb2.Model(), model_pb2.Model()
"""A smaller one with the same vocabulary, and one with another."""
for _model, _uuid, _vocabulary in ((DRAFT, "tiny", 49152), (STRANGER, "stranger", 32000)):
    _model.CopyFrom(MODEL)
    _model.model_uuid = _uuid
    _model.gguf.MergeFrom(model_pb2.GgufMetadata(tensor_bytes=8 * MIB, layer_count=2, vocabulary_size=_vocabulary))
SEEING = model_pb2.Model()
"""The same with a projector and an adapter."""
SEEING.CopyFrom(MODEL)
SEEING.model_uuid = "seeing"
SEEING.files.add(role=model_pb2.MODEL_FILE_ROLE_WEIGHTS, size_bytes=MODEL.size_bytes)
SEEING.files.add(role=model_pb2.MODEL_FILE_ROLE_PROJECTOR, size_bytes=8 * MIB)
SEEING.files.add(role=model_pb2.MODEL_FILE_ROLE_ADAPTER, name="style", size_bytes=3 * MIB)


class FakeCatalogue(download_pb2_grpc.CatalogueServiceServicer):
    """A fake of the download service's catalogue: a few models."""

    async def GetCatalogueModel(self, request, context):
        for model in (MAPPED_MODEL, DRAFT, STRANGER, SEEING):
            if request.model_uuid == model.model_uuid:
                return model
        if request.model_uuid != MODEL.model_uuid:
            raise MeshError(
                Reason.ERROR_REASON_MODEL_NOT_FOUND, f"no model {request.model_uuid}", {"modelUuid": request.model_uuid}
            )
        return MODEL


class FakeController(controller_pb2_grpc.ControllerServiceServicer):
    """A fake of the controller: machines with memory, and one declared server."""

    def __init__(self) -> None:
        self.nodes = [controller_pb2.NodeCapacity(free_bytes=8192 * MIB)]
        self.freed_bytes = 0
        """What the declared server takes: free once it is left out."""
        self.server = server_pb2.Server(server_uuid="0f0c6a0e", model_uuid="smol", replicas=1)

    async def GetCapacity(self, request, context):
        capacity = controller_pb2.Capacity(nodes=self.nodes)
        if request.without_server_uuid == self.server.server_uuid:
            capacity.nodes[0].free_bytes += self.freed_bytes
        return capacity

    async def GetDeclaredServer(self, request, context):
        if request.server_uuid != self.server.server_uuid:
            raise MeshError(Reason.ERROR_REASON_SERVER_NOT_FOUND, "no such server")
        return self.server


class FakeSigner(gateway_pb2_grpc.SigningKeyServiceServicer):
    """A fake of the gateway's signing: keeps what it was asked to sign, unless it is told to fail."""

    def __init__(self) -> None:
        self.fails = False
        self.during: Callable[[], Awaitable[None]] | None = None
        """What happens while a token is signed."""
        self.signed: list[gateway_pb2.SignTokenRequest] = []

    async def SignToken(self, request, context):
        if self.fails:
            raise RuntimeError("no signature")
        if self.during is not None:
            await self.during()
        self.signed.append(request)
        return gateway_pb2.SignTokenResponse(token=f"signed.{request.token_id}.x")


@dataclass
class Mesh:
    """Stubs of the service under test and the fakes behind it."""

    settings: Settings
    contract: contract_pb2_grpc.ContractServiceStub
    admission: admission_pb2_grpc.AdmissionServiceStub
    channel: grpc.aio.Channel
    member: Member
    rights: Rights
    controller: FakeController = field(default_factory=FakeController)
    signer: FakeSigner = field(default_factory=FakeSigner)
    standings: FakeStandings = field(default_factory=FakeStandings)


@pytest.fixture(name="mesh")
async def contract_mesh(settings, start_main, start_member, connect) -> Mesh:
    """`mesh`: the contract service on SQLite and on PostgreSQL, its books kept. Import it where it is used."""
    member = await start_main(settings, "contract", run)
    assert member._rights is not None
    channel = connect(settings, "contract")
    mesh = Mesh(
        settings,
        contract_pb2_grpc.ContractServiceStub(channel),
        admission_pb2_grpc.AdmissionServiceStub(channel),
        channel,
        member,
        member._rights.rights,
    )
    add_controller = controller_pb2_grpc.add_ControllerServiceServicer_to_server
    add_signer = gateway_pb2_grpc.add_SigningKeyServiceServicer_to_server
    add_standings = gateway_pb2_grpc.add_StandingServiceServicer_to_server
    add_catalogue = download_pb2_grpc.add_CatalogueServiceServicer_to_server
    await start_member(settings, "controller", lambda member: add_controller(mesh.controller, member.server))

    def serve_gateway(member: Member) -> None:
        add_signer(mesh.signer, member.server)
        add_standings(mesh.standings, member.server)

    await start_member(settings, "gateway", serve_gateway)
    await start_member(settings, "download", lambda member: add_catalogue(FakeCatalogue(), member.server))
    return mesh


async def failure(call: Awaitable[object]) -> tuple[str, dict[str, str]]:
    """The reason that a call fails with, and its metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)
