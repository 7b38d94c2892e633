"""Jobs that are given an importance matrix, read by the rules of the download service, with a stand-in of llama-quantize."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import grpc
import numpy
import pytest

from engine import sentence
from llamesh.v1 import quant_pb2
from services.quant.step import tensor_rows
from tests.contract.conftest import StartMain
from tests.contract.quant.conftest import Quant, states
from tests.contract.rich_status import read_refusal
from tests.importance_matrices import columns_of, write_matrix, write_older_matrix
from tests.quantised_models import write_source

FAILED, SUCCEEDED = quant_pb2.QUANT_JOB_STATE_FAILED, quant_pb2.QUANT_JOB_STATE_SUCCEEDED
pytestmark = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256, as types need that need a matrix."""
    size = sentence.Size(width=512, feed_forward=256)
    return write_source(tmp_path_factory.mktemp("wide") / "tiny-f16.gguf", size=size)


@pytest.fixture
async def quant(prepared: Quant, start_main: StartMain) -> Quant:
    """The service without llama-imatrix, which a given matrix does not need."""
    from services.quant.service import run

    prepared.settings = prepared.settings.model_copy(update={"llama_imatrix_bin": ""})
    (prepared.settings.home / "import").mkdir(parents=True, exist_ok=True)
    await start_main(prepared.settings, "quant", run)
    return prepared


def given(path: Path, **fields: object) -> quant_pb2.QuantOptions:
    return quant_pb2.QuantOptions(importance_matrix_source=path.as_uri(), **fields)  # type: ignore[arg-type]


async def refused(quant: Quant, options: quant_pb2.QuantOptions) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quant.create("IQ2_XXS", options=options)
    return read_refusal(raised.value).reason, raised.value.details() or ""


@pytest.mark.parametrize("older", [False, True])
async def test_a_job_uses_the_matrix_that_it_is_given(quant: Quant, source: Path, older: bool) -> None:
    path = quant.settings.home / "import" / "of tiny.dat"
    random = numpy.random.default_rng(3)
    if older:
        write_older_matrix(path, {name: random.uniform(1, 9, width) for name, width in columns_of(source).items()})
    else:
        write_matrix(path, source, 3)
    job = await quant.create("IQ2_XXS", "IQ3_XXS", options=given(path), max_kl_divergence=1000)
    assert job.options == quant_pb2.QuantOptions(importance_matrix_source="of tiny.dat"), "no path of this machine"
    found = await quant.call("ListQuantSources", quant_pb2.ListQuantSourcesRequest())
    assert list(found.sources) == [path.as_uri()], "the download service keeps what was handed over"
    job = await quant.ended(job.job_id)
    assert job.steps[1].kind == quant_pb2.QUANT_STEP_KIND_IMATRIX
    assert job.state == SUCCEEDED, job
    model = (await quant.models())["tiny-IQ2_XXS"]
    assert model.report.matrix_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.report.bits_per_weight < 3
    assert model.report.compared_tensors >= 2
    made = quant.objects()[model.object_key.rpartition("/")[2]]
    if older:
        name = "blk.0.ffn_up.weight"
        weights = tensor_of(source, name)
        random = numpy.random.default_rng(3)
        values = {each: random.uniform(1, 9, width) for each, width in columns_of(source).items()}[name]
        importance = (values.astype(numpy.float32) / numpy.float32(5)).astype(numpy.float32)
        stored = next(each.data for each in gguf.GGUFReader(made).tensors if each.name == name)
        assert (stored == tensor_rows.quantised(weights, "IQ2_XXS", importance)).all()
        assert (stored != tensor_rows.quantised(weights, "IQ2_XXS", numpy.ones_like(importance))).any()


def tensor_of(path: Path, name: str) -> object:
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == name)
    return numpy.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), numpy.float32)


async def test_a_file_that_is_no_matrix_of_the_model_ends_the_job(quant: Quant) -> None:
    path = quant.settings.home / "import" / "other.dat"
    write_older_matrix(path, {"blk.99.other.weight": [1, 2]})
    job = await quant.ended((await quant.create("Q8_0", options=given(path))).job_id)
    assert job.state == FAILED
    assert job.error.reason == "QUANT_REFUSED"
    assert (
        "the source has no tensor of the name of its first entry: it is the matrix of another model"
        in job.error.message
    )
    assert states(job)[1] == "imatrix FAILED"
    assert job.steps[1].tries == 1
    await quant.tidy(0)


async def test_a_file_that_was_changed_since_ends_the_job(quant: Quant, source: Path) -> None:
    path = quant.settings.home / "import" / "matrix.gguf"
    write_matrix(path, source, 1)
    quant.fault.write_text("hang")
    first = await quant.create("Q8_0", name="first")
    await quant.until(first.job_id, lambda job: job.steps[1].done)
    job = await quant.create("Q8_0", options=given(path))
    path.unlink()
    write_matrix(path, source, 2)
    quant.fault.unlink()
    job = await quant.ended(job.job_id)
    assert (job.state, job.steps[1].error.reason) == (FAILED, "CONTENT_MISMATCH"), job


async def test_a_retry_takes_the_matrix_that_was_corrected_and_keeps_the_source(quant: Quant, source: Path) -> None:
    path = quant.settings.home / "import" / "matrix.dat"
    write_older_matrix(path, {"blk.99.other.weight": [1, 2]})
    job = await quant.ended((await quant.create("Q8_0", options=given(path))).job_id)
    assert (job.state, job.error.reason) == (FAILED, "QUANT_REFUSED")
    path.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quant.stub.RetryQuantJob(quant_pb2.RetryQuantJobRequest(job_id=job.job_id), metadata=quant.caller)
    assert read_refusal(raised.value).reason == "SOURCE_REFUSED"
    said = raised.value.details() or ""
    assert "the job reads its importance matrix again, and cannot open matrix.dat" in said
    assert (
        "put it back and retry the job, or start a new one with"
        " `llamesh quantize tiny-f16.gguf --types Q8_0 --name tiny --imatrix file:///FOLDER/matrix.dat`" in said
    )
    assert (await quant.job(job.job_id)).state == FAILED
    write_matrix(path, source, 2)
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    again = await quant.ended(job.job_id)
    assert again.state == SUCCEEDED, again
    assert again.steps[0].end_time == job.steps[0].end_time, "the source is not fetched again"
    (model,) = (await quant.models()).values()
    assert model.report.matrix_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_only_files_that_may_be_imported_are_read(quant: Quant, source: Path, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.gguf", quant.settings.home / "import"
    write_matrix(outside, source, 1)
    (folder / "link.gguf").symlink_to(outside)
    (folder / "empty.gguf").touch()
    with (folder / "large.gguf").open("wb") as file:
        file.truncate((1 << 30) + 1)
    for path, words in (
        (outside, "lies in no folder that models may be imported from"),
        (folder / "link.gguf", "lies in no folder that models may be imported from"),
        (folder / ".." / "quant.db", "lies in no folder that models may be imported from"),
        (folder / "missing.gguf", "cannot open missing.gguf"),
        (folder, "not a regular file"),
        (folder / "empty.gguf", "empty.gguf has 0 bytes"),
        (folder / "large.gguf", "large.gguf has 1073741825 bytes"),
    ):
        reason, said = await refused(quant, given(path))
        assert (reason, words in said, str(folder) in said) == ("SOURCE_REFUSED", True, False), said
    for address in ("https://models.example/matrix.gguf", "hf:owner/repo", str(outside), "quant:x"):
        reason, said = await refused(quant, quant_pb2.QuantOptions(importance_matrix_source=address))
        assert (reason, "not the address of an importance matrix" in said) == ("SOURCE_REFUSED", True), said


async def test_a_matrix_is_either_given_or_measured(quant: Quant, source: Path) -> None:
    path = quant.settings.home / "import" / "matrix.gguf"
    write_matrix(path, source, 1)
    for fields in ({"importance_matrix": True}, {"calibration_text": "some words"}):
        reason, said = await refused(quant, given(path, **fields))
        assert reason == "INVALID_FIELD"
        assert (
            f"options.importance_matrix_source: this matrix is used, so none is measured: leave out {next(iter(fields))}"
            in said
        )
    request = quant_pb2.EstimateQuantJobRequest(model_uuid="tiny-f16.gguf", types=["IQ1_S"], options=given(path))
    estimate = await quant.call("EstimateQuantJob", request)
    assert not estimate.HasField("refusal")
    request.options.Clear()
    request.types[:] = ["Q8_0"]
    without = await quant.call("EstimateQuantJob", request)
    request.options.CopyFrom(given(path))
    assert (await quant.call("EstimateQuantJob", request)).needed_bytes == (
        without.needed_bytes + 2 * path.stat().st_size
    )
