"""Jobs that are made from a checkpoint: the real services download and quant, a FAKE of the Hub, and a stand-in for llama-quantize."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

import services.download.service
import services.quant.service
from llamesh.kit.config import Settings
from llamesh.v1 import quant_pb2
from llamesh.v1.quant_pb2_grpc import QuantServiceStub
from tests.checkpoints import write_checkpoint
from tests.conftest import SECRET
from tests.contract.conftest import AsCaller, Connect, StartMain, StartStandings
from tests.contract.quant.conftest import Quant, SourceCatalogue, states
from tests.contract.rich_status import read_refusal
from tests.quantised_models import write_program
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

pytestmark = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
HEADER_READ = ["model-00001-of-00002.safetensors"]
"""What is asked for of the weights when a job is submitted: the beginning of one file."""
FAILED, SUCCEEDED = quant_pb2.QUANT_JOB_STATE_FAILED, quant_pb2.QUANT_JOB_STATE_SUCCEEDED


def weights_asked(hub: FakeHub) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path and path.endswith(".safetensors")]


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def checkpoint(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two files."""
    return write_checkpoint(source, tmp_path_factory.mktemp("checkpoints") / "tiny words", parts=2)


@pytest.fixture
def repository(hub: FakeHub, checkpoint: Path) -> Repository:
    """The checkpoint as a repository, whose small files are not in LFS."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    files |= {"modeling_tiny.py": b"raise SystemExit", "README.md": b"# Tiny", "onnx/model.onnx": b"1"}
    small = {name for name in files if not name.endswith(".safetensors")}
    hub.repositories["ada/Tiny"] = Repository(files, not_in_lfs=small)
    return hub.repositories["ada/Tiny"]


@pytest.fixture
def converter(source: Path, tmp_path: Path) -> Path:
    """A stand-in for llama.cpp's converter, which knows every architecture and writes the same model."""
    path = tmp_path / "convert"
    said = (
        f'test -f "$5/config.json" || exit 1; echo "$HF_HUB_OFFLINE$TRANSFORMERS_OFFLINE $JWT_SECRET" > {tmp_path}/said'
    )
    path.write_text(f'#!/bin/sh\n{said}\necho "Writing: 100%|"\ncp {source} "$4"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def own_converter(request: pytest.FixtureRequest) -> str:
    """The path of the converter that the service uses: none, which means that of llamesh."""
    return str(request.getfixturevalue("converter")) if getattr(request, "param", "") else ""


@pytest.fixture
async def quant(
    settings: Settings,
    own_converter: str,
    hub: FakeHub,
    source: Path,
    tmp_path: Path,
    start_main: StartMain,
    start_standings: StartStandings,
    connect: Connect,
    as_caller: AsCaller,
) -> Quant:
    fault = tmp_path / "fault"
    own = settings.model_copy(
        update={
            "hf_endpoint": hub.url,
            "llama_quantize_bin": str(write_program(tmp_path / "llama-quantize", fault)),
            "llama_convert_bin": own_converter,
        }
    )
    await start_standings(own)
    await start_main(own, "download", services.download.service.run)
    await start_main(own, "quant", services.quant.service.run)
    caller = as_caller("ada", "manage")
    return Quant(own, QuantServiceStub(connect(own, "quant")), caller, SourceCatalogue(source), fault)


async def _refused(quant: Quant, source: str) -> tuple[str, str]:
    """The reason and the message of the refusal of a job."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await quant.create("Q8_0", model_uuid="", source=source)
    return read_refusal(caught.value).reason, caught.value.details() or ""


@pytest.mark.usefixtures("repository")
async def test_a_repository_is_fetched_converted_and_quantised(quant: Quant) -> None:
    job = await quant.create("Q8_0", "Q4_0", model_uuid="", source="https://huggingface.co/ada/Tiny")
    assert (job.source, job.model_uuid, job.name) == (f"hf:ada/Tiny@{COMMIT}", "", "Tiny")
    job = await quant.ended(job.job_id)
    assert job.state == SUCCEEDED, job
    assert states(job)[:3] == ["fetch SUCCEEDED", "convert SUCCEEDED", "quantize Q8_0 SUCCEEDED"]
    fetched, made = job.steps[:2]
    assert fetched.done == fetched.total > 0
    assert made.done == made.total == 12
    models = await quant.models()
    assert set(models) == {"Tiny-Q8_0", "Tiny-Q4_0"}
    for model in models.values():
        assert (model.source, model.source_model_uuid) == (f"hf:ada/Tiny@{COMMIT}", "")
        assert model.report.compared_tensors >= 2
        assert len(model.source_sha256) == 64
    await quant.tidy(2)


@pytest.mark.usefixtures("repository")
async def test_nothing_but_data_is_fetched(quant: Quant, hub: FakeHub) -> None:
    await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    fetched = {path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path}
    assert fetched == {
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    }


async def test_a_folder_is_converted(quant: Quant, checkpoint: Path) -> None:
    folder = quant.settings.home / "import" / "mine" / "tiny words"
    shutil.copytree(checkpoint, folder)
    job = await quant.create("F16", "Q8_0", model_uuid="", source=folder.as_uri())
    assert (job.source, job.name) == ("tiny words", "tiny-words")
    job = await quant.ended(job.job_id)
    assert job.state == SUCCEEDED, job
    models = await quant.models()
    assert set(models) == {"tiny-words-F16", "tiny-words-Q8_0"}
    assert models["tiny-words-F16"].report.kl_divergence < 1e-6
    await quant.tidy(2)


@pytest.mark.usefixtures("repository")
async def test_an_estimate_is_that_of_the_model_that_will_be_made(quant: Quant, source: Path) -> None:
    request = quant_pb2.EstimateQuantJobRequest(source="hf:ada/Tiny", types=["Q8_0"])
    found = await quant.call("EstimateQuantJob", request)
    assert not found.HasField("refusal"), found.refusal
    weights = found.types[0].size_bytes * 8 / found.types[0].bits_per_weight * 2
    assert 0.9 < weights / source.stat().st_size < 1.1
    assert found.needed_bytes > 2 * weights


async def test_the_disk_that_a_job_needs_follows_the_types_of_the_files(quant: Quant, repository: Repository) -> None:
    request = quant_pb2.EstimateQuantJobRequest(source="hf:ada/Tiny", types=["F16"])
    right = await quant.call("EstimateQuantJob", request)
    _change(repository, torch_dtype="float32")
    assert (await quant.call("EstimateQuantJob", request)).needed_bytes == pytest.approx(right.needed_bytes, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "reason", "said"),
    [
        ("config.json", None, "SOURCE_REFUSED", "no config.json"),
        ("config.json", b"{", "QUANT_REFUSED", "names no architecture"),
        ("config.json", b" " * (1 << 21), "QUANT_REFUSED", "names no architecture"),
        (
            "config.json",
            {"architectures": ["Gemma9ForCausalLM"]},
            "QUANT_REFUSED",
            "Gemma9ForCausalLM is not converted",
        ),
        ("config.json", {"auto_map": {}, "architectures": ["X"]}, "QUANT_REFUSED", "is not converted"),
        ("config.json", {"auto_map": {"A": "b.C"}, "architectures": ["X"]}, "QUANT_REFUSED", "which is never run"),
        ("config.json", {"quantization_config": {"bits": 4}}, "QUANT_REFUSED", "quantised already"),
        ("tokenizer.json", None, "QUANT_REFUSED", "no tokenizer.json"),
        ("model-00001-of-00002.safetensors", None, "SOURCE_REFUSED", "lacks part 1 of 2"),
    ],
)
async def test_what_cannot_be_converted_is_refused_before_any_work(
    quant: Quant, repository: Repository, name: str, change: object, reason: str, said: str
) -> None:
    if change is None:
        del repository.files[name]
    elif isinstance(change, dict):
        repository.files[name] = json.dumps(json.loads(repository.files[name]) | change).encode()
    else:
        repository.files[name] = change
    found, words = await _refused(quant, "hf:ada/Tiny")
    assert (found, said in words) == (reason, True), words
    assert not quant.folders()


async def test_pickle_files_are_refused(quant: Quant, repository: Repository) -> None:
    for name in [name for name in repository.files if name.endswith(".safetensors")]:
        repository.files[name.replace(".safetensors", ".bin")] = repository.files.pop(name)
    assert await _refused(quant, "hf:ada/Tiny") == (
        "SOURCE_REFUSED",
        "ada/Tiny has its weights in pickle files, which may run code when they are read: take a checkpoint in safetensors files",
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf:ada/Unknown", "SOURCE_REFUSED"),
        ("hf:ada/Tiny@nothing", "SOURCE_REFUSED"),
        ("hf:ada/Tiny:Q4_K_M", "SOURCE_REFUSED"),
        ("https://models.example/tiny", "SOURCE_REFUSED"),
        ("ollama:tiny", "SOURCE_REFUSED"),
        ("s3://models/tiny", "SOURCE_REFUSED"),
        ("tiny", "SOURCE_REFUSED"),
        ("file:///etc", "SOURCE_REFUSED"),
        ("/etc", "SOURCE_REFUSED"),
    ],
)
@pytest.mark.usefixtures("repository")
async def test_other_addresses_are_refused(quant: Quant, address: str, reason: str) -> None:
    assert (await _refused(quant, address))[0] == reason


async def test_a_folder_outside_of_those_for_imports_is_not_even_said_to_exist(quant: Quant, tmp_path: Path) -> None:
    there = await _refused(quant, tmp_path.as_uri())
    (quant.settings.home / "import").mkdir(parents=True, exist_ok=True)
    link = quant.settings.home / "import" / "link"
    link.symlink_to(tmp_path)
    assert there[0] == (await _refused(quant, link.as_uri()))[0] == "SOURCE_REFUSED"


async def test_neither_or_both_sources_are_refused(quant: Quant) -> None:
    for fields in ({"model_uuid": ""}, {"source": "hf:ada/Tiny"}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await quant.create("Q8_0", **fields)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_read_that_is_cut_off_goes_on(quant: Quant, hub: FakeHub, repository: Repository) -> None:
    """The connection breaks in every file that is read."""
    hub.cut_after = [1, 100, 7, 50_000, 40_000]
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert job.state == SUCCEEDED, job
    assert hub.cut_after == []


async def test_bytes_that_are_not_those_of_the_listing_end_the_job(quant: Quant, repository: Repository) -> None:
    repository.digests["model-00002-of-00002.safetensors"] = "0" * 64
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, job.error.reason) == (FAILED, "CONTENT_MISMATCH"), job
    await quant.tidy(0)


async def test_a_small_file_with_other_bytes_than_its_id_of_git_ends_the_job(
    quant: Quant, repository: Repository
) -> None:
    """It has the listed length, and no digest of Git LFS."""
    config = repository.files["tokenizer_config.json"]
    repository.git_blobs["tokenizer_config.json"] = config[:-1] + b" "
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, job.error.reason) == (FAILED, "CONTENT_MISMATCH"), job
    assert "tokenizer_config.json has other bytes than its source says" in job.error.message
    await quant.tidy(0)


async def test_a_folder_that_changes_after_the_submission_ends_the_job(quant: Quant, checkpoint: Path) -> None:
    """A job that waits for its turn is made from what was submitted, or from nothing."""
    quant.fault.write_text("hang")
    first = quant.settings.home / "import" / "first"
    second = quant.settings.home / "import" / "second"
    for folder in (first, second):
        shutil.copytree(checkpoint, folder)
    before = await quant.create("Q8_0", model_uuid="", source=first.as_uri())
    job = await quant.create("Q8_0", model_uuid="", source=second.as_uri())
    (second / "config.json").write_text((second / "config.json").read_text() + " ")
    quant.fault.unlink()
    assert (await quant.ended(before.job_id)).state == SUCCEEDED
    job = await quant.ended(job.job_id)
    assert (job.state, job.error.reason) == (FAILED, "CONTENT_MISMATCH"), job


async def test_weights_that_do_not_fit_the_configuration_end_the_job_with_the_tensor(
    quant: Quant, repository: Repository
) -> None:
    config = json.loads(repository.files["config.json"])
    repository.files["config.json"] = json.dumps(config | {"intermediate_size": 64}).encode()
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, job.error.reason) == (FAILED, "QUANT_REFUSED"), job
    assert (
        "the tensor blk.0.ffn_gate.weight has the shape [32, 288], by config.json it has [64, 288]" in job.error.message
    )
    assert states(job)[1] == "convert FAILED"
    await quant.tidy(0)


async def test_a_job_that_is_cancelled_leaves_nothing(quant: Quant, hub: FakeHub, repository: Repository) -> None:
    job = await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")
    await quant.until(job.job_id, lambda job: job.state == quant_pb2.QUANT_JOB_STATE_RUNNING)
    await quant.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=job.job_id))
    await quant.tidy(0)


def _change(repository: Repository, **fields: object) -> None:
    config = json.loads(repository.files["config.json"])
    repository.files["config.json"] = json.dumps(config | fields).encode()


@pytest.mark.parametrize("own_converter", ["program"], indirect=True)
async def test_another_converter_takes_other_architectures(
    quant: Quant, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    _change(repository, architectures=["Gemma9ForCausalLM"])
    del repository.files["tokenizer.json"]
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert job.state == SUCCEEDED, job
    assert (job.steps[1].done, job.steps[1].total) == (100, 100)
    assert (tmp_path / "said").read_text() == "11 \n", "no access to the Hub, and no secrets"
    await quant.tidy(1)


@pytest.mark.parametrize("own_converter", ["program"], indirect=True)
async def test_another_converter_gets_no_checkpoint_that_brings_code(quant: Quant, repository: Repository) -> None:
    _change(repository, architectures=["Gemma9ForCausalLM"], auto_map={"AutoModel": "modeling.Gemma9"})
    reason, words = await _refused(quant, "hf:ada/Tiny")
    assert (reason, "which is never run" in words) == ("QUANT_REFUSED", True)


@pytest.mark.parametrize("own_converter", ["missing"], indirect=True)
@pytest.mark.usefixtures("repository")
async def test_a_converter_that_is_no_program_is_named(quant: Quant, converter: Path) -> None:
    converter.unlink()
    reason, words = await _refused(quant, "hf:ada/Tiny")
    assert (reason, f"LLAMA_CONVERT_BIN is {converter}, which is not a program" in words) == ("QUANT_REFUSED", True)


@pytest.mark.parametrize("own_converter", ["program"], indirect=True)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
async def test_a_checkpoint_that_brings_code_is_converted_by_llamesh_which_runs_none(
    quant: Quant, repository: Repository, tmp_path: Path, name: str
) -> None:
    document = json.loads(repository.files[name])
    repository.files[name] = json.dumps(document | {"auto_map": {"AutoTokenizer": ["a/b--c.D", None]}}).encode()
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert job.state == SUCCEEDED, job
    assert not (tmp_path / "said").exists()


@pytest.mark.parametrize("own_converter", ["program"], indirect=True)
async def test_a_tokenizer_that_brings_code_is_refused_before_any_work(quant: Quant, repository: Repository) -> None:
    """The other converter would run the code, and llamesh's own does not know the architecture."""
    _change(repository, architectures=["Gemma9ForCausalLM"])
    document = json.loads(repository.files["tokenizer_config.json"])
    repository.files["tokenizer_config.json"] = json.dumps(document | {"auto_map": {"AutoTokenizer": "a.B"}}).encode()
    reason, words = await _refused(quant, "hf:ada/Tiny")
    assert (reason, "Gemma9ForCausalLM is not converted" in words) == ("QUANT_REFUSED", True)


@pytest.mark.parametrize("own_converter", ["program"], indirect=True)
async def test_a_tokenizer_with_code_and_a_long_file_is_refused_before_the_weights_come(
    quant: Quant, hub: FakeHub, repository: Repository
) -> None:
    _change(repository, architectures=["Gemma9ForCausalLM"])
    document = json.loads(repository.files["tokenizer_config.json"])
    long = {"auto_map": {"AutoTokenizer": "a.B"}, "more": "x" * (1 << 20)}
    repository.files["tokenizer_config.json"] = json.dumps(document | long).encode()
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, states(job)[0], job.error.reason) == (FAILED, "fetch FAILED", "QUANT_REFUSED")
    assert weights_asked(hub) == HEADER_READ


async def test_a_tokenizer_that_cannot_be_converted_is_found_before_the_weights_come(
    quant: Quant, hub: FakeHub, repository: Repository
) -> None:
    tokenizer = json.loads(repository.files["tokenizer.json"])
    repository.files["tokenizer.json"] = json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}).encode()
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, states(job)[0], job.error.reason) == (FAILED, "fetch FAILED", "QUANT_REFUSED")
    assert "Lowercase" in job.error.message
    assert weights_asked(hub) == HEADER_READ


async def test_files_without_weights_have_a_largest_size(quant: Quant, repository: Repository) -> None:
    repository.files["vocab.json"] = b"{}"
    repository.sizes["vocab.json"] = 60 << 30
    assert await _refused(quant, "hf:ada/Tiny") == ("SOURCE_REFUSED", "vocab.json of ada/Tiny has more than 64 MiB")


async def test_a_file_that_is_longer_than_listed_ends_the_job(quant: Quant, repository: Repository) -> None:
    repository.sizes["tokenizer.json"] = 100
    job = await quant.ended((await quant.create("Q8_0", model_uuid="", source="hf:ada/Tiny")).job_id)
    assert (job.state, job.error.reason) == (FAILED, "CONTENT_MISMATCH"), job
    await quant.tidy(0)
