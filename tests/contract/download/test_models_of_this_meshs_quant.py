"""Models of the Quant service of the same mesh: asked over gRPC, and read from its folder if there is no S3 server. Quant is a FAKE."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import quant_pb2
from llamesh.v1.quant_pb2_grpc import QuantServiceServicer, add_QuantServiceServicer_to_server
from tests.contract.conftest import StartMember
from tests.contract.download.conftest import TINY, OpenWith, Service, sha256

REPORT = quant_pb2.QuantReport(
    bits_per_weight=6.17, fallback_tensors=180, tensors=272, measured_tokens=255, kl_divergence=0.0616, perplexity=19.1
)


class Quant(QuantServiceServicer):
    """Knows one model, and says where its file is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = quant_pb2.QuantModel(
            model_uuid="tiny-q4", name="tiny-Q4_K_M.gguf", size_bytes=len(TINY), sha256=sha256(TINY), report=REPORT
        )

    async def LocateQuantModel(self, request, context):
        if request.model_uuid != "tiny-q4":
            reason = Reason.ERROR_REASON_MODEL_NOT_FOUND
            raise MeshError(reason, f"the Quant service has made no model {request.model_uuid}", {"modelUuid": "x"})
        return quant_pb2.LocateQuantModelResponse(model=self.model, path=str(self.path))


@pytest.fixture
def quant(one_settings: Settings) -> Quant:
    path = one_settings.home / "llm-models" / "models" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(TINY)
    return Quant(path)


@pytest.fixture
async def mesh(quant: Quant, one_settings: Settings, open_with: OpenWith, start_member: StartMember) -> Service:
    service = await open_with(one_settings, quant=True)

    def register(member: Member) -> None:
        add_QuantServiceServicer_to_server(quant, member.server)
        member.announce("llamesh.v1.QuantService")

    await start_member(service.settings, "quant", register)
    return service


async def test_an_id_alone_brings_the_model(mesh: Service) -> None:
    download = await mesh.fetched("tiny-q4")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (download.name, download.source, download.sha256) == ("tiny-Q4_K_M.gguf", "quant:tiny-q4", sha256(TINY))


async def test_the_figures_of_a_model_are_in_the_catalogue_and_of_others_none(mesh: Service, quant: Quant) -> None:
    await mesh.fetched("tiny-q4")
    assert (await mesh.model("tiny-q4")).quality == REPORT
    quant.model.ClearField("report")
    await mesh.fetched("again", "quant:tiny-q4")
    assert not (await mesh.model("again")).HasField("quality")


async def test_a_model_that_quant_has_not_made_is_refused_with_the_reason(mesh: Service) -> None:
    download = await mesh.fetched("none")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_REFUSED")
    assert "has made no model none" in download.error.message


async def test_a_file_that_differs_from_quants_description_is_refused(mesh: Service, quant: Quant) -> None:
    quant.path.write_bytes(TINY[:-1] + b"\1")
    assert (await mesh.fetched("tiny-q4")).error.reason == "CONTENT_MISMATCH"
    quant.path.write_bytes(TINY[:-32])
    assert "and Quant says" in (await mesh.fetched("tiny-q4")).error.message
    assert mesh.stored == []


async def test_no_file_outside_of_quants_folder_is_read(mesh: Service, quant: Quant, one_settings: Settings) -> None:
    quant.path = one_settings.home / "secrets" / "x.gguf"
    assert (await mesh.fetched("tiny-q4")).error.reason == "SOURCE_REFUSED"
