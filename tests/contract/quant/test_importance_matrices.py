"""Jobs with an importance matrix, with stand-ins of llama-imatrix and llama-quantize."""

from __future__ import annotations

import hashlib
from pathlib import Path

import grpc
import pytest

from engine import sentence
from llamesh.v1 import quant_pb2
from services.quant.job_run import CALIBRATION
from tests.contract.conftest import StartMain
from tests.contract.quant.conftest import Quant, states
from tests.contract.rich_status import read_refusal
from tests.importance_matrices import CHUNK, write_matrix
from tests.quantised_models import write_source

MATRIX = quant_pb2.QuantOptions(importance_matrix=True)
pytestmark = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256, as types need that need a matrix."""
    size = sentence.Size(width=512, feed_forward=256)
    return write_source(tmp_path_factory.mktemp("wide") / "tiny-f16.gguf", size=size)


def matrix_of(text: str, source: Path, folder: Path) -> str:
    """The SHA-256 of the matrix that the stand-in makes with a text."""
    write_matrix(folder / "expected.gguf", source, int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]))
    return hashlib.sha256((folder / "expected.gguf").read_bytes()).hexdigest()


async def test_types_that_need_a_matrix_are_made_with_one(quant: Quant, source: Path, tmp_path: Path) -> None:
    job = await quant.ended((await quant.create("IQ2_XXS", "Q4_0", options=MATRIX)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    assert job.options == MATRIX
    assert states(job)[:3] == ["fetch SUCCEEDED", "imatrix SUCCEEDED", "quantize IQ2_XXS SUCCEEDED"]
    assert job.steps[1].done == job.steps[1].total == len(CALIBRATION.read_text("utf-8").split()) // CHUNK
    models = await quant.models()
    expected = matrix_of(CALIBRATION.read_text("utf-8"), source, tmp_path)
    assert {model.report.matrix_sha256 for model in models.values()} == {expected}
    assert models["tiny-IQ2_XXS"].report.bits_per_weight < 3
    assert models["tiny-IQ2_XXS"].report.compared_tensors >= 2
    await quant.tidy(2)


async def test_a_job_measures_with_its_own_text_and_does_not_show_it(
    quant: Quant, source: Path, tmp_path: Path
) -> None:
    text = "What the model will be asked, in 1,024 words. " * 150
    options = quant_pb2.QuantOptions(importance_matrix=True, calibration_text=text)
    job = await quant.ended((await quant.create("Q8_0", options=options)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    assert job.options == MATRIX
    (model,) = (await quant.models()).values()
    assert model.report.matrix_sha256 == matrix_of(text, source, tmp_path)


async def test_programs_may_be_named_by_a_relative_path(
    prepared: Quant, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.quant.service import run

    folder, own = Path(prepared.settings.llama_imatrix_bin).parent, prepared.settings
    monkeypatch.chdir(folder.parent)
    names = {
        name: f"{folder.name}/{Path(getattr(own, name)).name}" for name in ("llama_imatrix_bin", "llama_quantize_bin")
    }
    prepared.settings = own.model_copy(update=names)
    await start_main(prepared.settings, "quant", run)
    job = await prepared.ended((await prepared.create("Q8_0", options=MATRIX)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job


async def test_a_text_that_is_too_short_ends_the_job_with_what_is_needed(quant: Quant) -> None:
    options = quant_pb2.QuantOptions(importance_matrix=True, calibration_text="too short")
    job = await quant.ended((await quant.create("Q8_0", options=options)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_FAILED
    assert "the text is too short for an importance matrix: it needs 1,024 tokens" in job.error.message
    assert states(job)[1:] == [
        "imatrix FAILED",
        "quantize Q8_0 SKIPPED",
        "verify Q8_0 SKIPPED",
        "publish Q8_0 SKIPPED",
    ]
    await quant.tidy(0)


async def test_a_text_without_a_matrix_is_refused(quant: Quant) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quant.create("Q8_0", options=quant_pb2.QuantOptions(calibration_text="some words"))
    assert read_refusal(raised.value).reason == "INVALID_FIELD"
    assert "options.calibration_text" in str(raised.value.details())


async def test_without_its_programs_a_matrix_is_refused_and_estimated_so(
    prepared: Quant, start_main: StartMain
) -> None:
    from services.quant.service import run

    prepared.settings = prepared.settings.model_copy(update={"llama_imatrix_bin": ""})
    await start_main(prepared.settings, "quant", run)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await prepared.create("Q8_0", options=MATRIX)
    assert read_refusal(raised.value).reason == "QUANT_REFUSED"
    assert "LLAMA_IMATRIX_BIN is not set" in str(raised.value.details())
    request = quant_pb2.EstimateQuantJobRequest(model_uuid="tiny-f16.gguf", types=["IQ2_XXS"], options=MATRIX)
    estimate = await prepared.call("EstimateQuantJob", request)
    assert not estimate.types[0].HasField("refusal")
    assert "LLAMA_IMATRIX_BIN" in estimate.refusal.message
