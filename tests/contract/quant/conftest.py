"""The real Quant service on its socket, with a FAKE of the download service's catalogue and a stand-in for llama-quantize."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.json_format import ParseDict

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.gguf import read_gguf
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2, download_pb2_grpc, model_pb2, quant_pb2
from llamesh.v1.checkpoint_pb2_grpc import add_CheckpointServiceServicer_to_server
from llamesh.v1.quant_pb2_grpc import QuantServiceStub
from services.download.bandwidth import Bandwidth
from services.download.checkpoint_servicer import CheckpointServicer
from services.download.checkpoints import Checkpoints
from services.download.matrix_files import MatrixFiles
from services.download.sources import FileSource, HubSource
from services.quant.service import run
from tests.contract.conftest import AsCaller, Connect, StartMain, StartMember, StartStandings
from tests.contract.patience import PATIENCE, available
from tests.files import files_below
from tests.importance_matrices import write_imatrix_program
from tests.quantised_models import write_program, write_source

pytest.importorskip("xllamacpp", reason="variants are compared with what the engine's library makes")

ENDED = {
    quant_pb2.QUANT_JOB_STATE_SUCCEEDED,
    quant_pb2.QUANT_JOB_STATE_PARTIAL,
    quant_pb2.QUANT_JOB_STATE_FAILED,
    quant_pb2.QUANT_JOB_STATE_CANCELLED,
}


class SourceCatalogue(download_pb2_grpc.CatalogueServiceServicer):
    """A fake of the catalogue: one model in F16, and one that says that it is quantised."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            metadata = read_gguf(file, path.stat().st_size)
        self.model = model_pb2.Model(
            model_uuid="tiny-f16.gguf",
            name="tiny-f16.gguf",
            size_bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            gguf=model_pb2.GgufMetadata(quantisation="F16", parameter_count=metadata.parameter_count),
        )
        self.hold([path])
        self.quantised = model_pb2.Model()
        self.quantised.CopyFrom(self.model)
        self.quantised.model_uuid = "tiny-q4"
        self.quantised.gguf.quantisation = "Q4_1"

    def hold(self, parts: list[Path]) -> None:
        """Let the model have these parts."""
        self.paths = parts
        del self.model.files[:]
        for part in parts:
            digest = hashlib.sha256(part.read_bytes()).hexdigest()
            size = part.stat().st_size
            self.model.files.add(role=model_pb2.MODEL_FILE_ROLE_WEIGHTS, name=part.name, size_bytes=size, sha256=digest)
        self.model.sha256 = self.model.files[0].sha256

    async def GetCatalogueModel(self, request, context):
        for model in (self.model, self.quantised):
            if request.model_uuid == model.model_uuid:
                return model
        raise MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, "no such model", {"modelUuid": request.model_uuid})

    async def ListModelObjects(self, request, context):
        keys = [f"models/{number}.gguf" for number in range(len(self.paths))]
        return download_pb2.ListModelObjectsResponse(model=self.model, object_keys=keys)

    async def LocateModel(self, request, context):
        paths = list(map(str, self.paths))
        return download_pb2.LocateModelResponse(path=paths[0], file_paths=paths, model=self.model)


@dataclass
class Quant:
    """The Quant service as its callers see it."""

    settings: Settings
    stub: QuantServiceStub
    caller: list[tuple[str, str]]
    catalogue: SourceCatalogue
    fault: Path
    """What the quantiser does wrong, if the file is there."""

    async def call(self, method: str, request: Any) -> Any:
        make = getattr(self.stub, method)
        # A busy process may not know yet what its callers may do.
        return await available(lambda: make(request, metadata=self.caller, wait_for_ready=True, timeout=PATIENCE))

    async def create(self, *types: str, **fields: Any) -> quant_pb2.QuantJob:
        request = quant_pb2.CreateQuantJobRequest(**{"model_uuid": "tiny-f16.gguf", "types": types} | fields)
        return await self.call("CreateQuantJob", request)

    async def job(self, job_id: str) -> quant_pb2.QuantJob:
        return await self.call("GetQuantJob", quant_pb2.GetQuantJobRequest(job_id=job_id))

    async def until(self, job_id: str, condition: Callable[[quant_pb2.QuantJob], object]) -> quant_pb2.QuantJob:
        async with asyncio.timeout(PATIENCE):
            while not condition(job := await self.job(job_id)):
                # Each call takes time of the processors that the steps could use.
                await asyncio.sleep(0.1)
        return job

    async def ended(self, job_id: str) -> quant_pb2.QuantJob:
        return await self.until(job_id, lambda job: job.state in ENDED)

    async def models(self) -> dict[str, quant_pb2.QuantModel]:
        found = await self.call("ListQuantModels", quant_pb2.ListQuantModelsRequest())
        return {model.model_uuid: model for model in found.models}

    def objects(self) -> dict[str, Path]:
        """The files of the bucket by name, unfinished ones included."""
        return {path.name: path for path in files_below(self.settings.home / "llm-models")}

    def folders(self) -> list[Path]:
        """The folders of jobs."""
        return list((self.settings.home / "quant").glob("*"))

    async def tidy(self, models: int) -> None:
        """Wait until nothing is left but the published models with their descriptions, which are as their records say.

        The folder of the job that failed last may be left too: its retry goes on there.
        """
        listed = await self.call("ListQuantJobs", quant_pb2.ListQuantJobsRequest())
        failed = {quant_pb2.QUANT_JOB_STATE_FAILED, quant_pb2.QUANT_JOB_STATE_PARTIAL}
        kept = [
            job.job_id
            for job in sorted(listed.jobs, key=lambda job: job.update_time.ToDatetime())
            if job.state in failed
        ]
        async with asyncio.timeout(PATIENCE):
            while {path.name for path in self.folders()} - set(kept[-1:]) or len(self.objects()) != 2 * models:
                await asyncio.sleep(0.05)
        published = await self.models()
        assert len(published) == models
        for model in published.values():
            data = self.objects()[model.object_key.partition("/")[2]].read_bytes()
            beside = self.objects()[model.object_key.partition("/")[2].replace(".gguf", ".json")]
            described = ParseDict(json.loads(beside.read_text()), quant_pb2.QuantModel())
            described.create_time.CopyFrom(model.create_time)
            assert described == model
            assert (len(data), hashlib.sha256(data).hexdigest()) == (model.size_bytes, model.sha256)


def states(job: quant_pb2.QuantJob) -> list[str]:
    """The steps of a job in words: "quantize Q8_0 SUCCEEDED"."""
    return [
        " ".join(
            (
                quant_pb2.QuantStepKind.Name(step.kind).removeprefix("QUANT_STEP_KIND_").lower(),
                *([step.type] if step.type else []),
                quant_pb2.QuantStepState.Name(step.state).removeprefix("QUANT_STEP_STATE_"),
            )
        )
        for step in job.steps
    ]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "tiny-f16.gguf")


@pytest.fixture
async def prepared(
    settings: Settings,
    source: Path,
    tmp_path: Path,
    start_member: StartMember,
    start_standings: StartStandings,
    connect: Connect,
    as_caller: AsCaller,
) -> Quant:
    """All but the service itself."""
    catalogue = SourceCatalogue(source)
    files, bandwidth = FileSource([settings.home / "import"]), Bandwidth(0, time.monotonic)

    def add(member: Member) -> None:
        download_pb2_grpc.add_CatalogueServiceServicer_to_server(catalogue, member.server)
        # Checkpoints of the Hub have tests with the whole download service.
        checkpoints = Checkpoints(cast("HubSource", None), files, bandwidth, time.monotonic)
        servicer = CheckpointServicer(checkpoints, MatrixFiles(files, bandwidth))
        add_CheckpointServiceServicer_to_server(servicer, member.server)

    await start_member(settings, "download", add)
    await start_standings(settings)
    fault = tmp_path / "fault"
    own = settings.model_copy(
        update={
            "llama_quantize_bin": str(write_program(tmp_path / "llama-quantize", fault)),
            "llama_imatrix_bin": str(write_imatrix_program(tmp_path / "llama-imatrix")),
        }
    )
    return Quant(own, QuantServiceStub(connect(own, "quant")), as_caller("ada", "manage"), catalogue, fault)


@pytest.fixture
async def quant(prepared: Quant, start_main: StartMain) -> Quant:
    await start_main(prepared.settings, "quant", run)
    return prepared


Wait = Callable[[Callable[[], object]], Awaitable[None]]
