"""The Quant service's decisions: which step comes next, what is refused at submission, what llama.cpp meant."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.gguf.types import FILE_TYPES
from llamesh.v1.model_pb2 import GgufMetadata, Model
from llamesh.v1.quant_pb2 import QuantOptions
from services.quant import submission
from services.quant.plan import next_of, steps_of
from services.quant.quantisations import QUANTISATIONS, nearest
from services.quant.states import JobState, StepState
from services.quant.step.failure_messages import translate


@dataclass
class FakeStep:
    """A step as the plan sees it."""

    kind: str
    type: str
    state: str = StepState.WAITING


def steps(*types: str) -> list[FakeStep]:
    return [FakeStep(kind, of_type) for kind, of_type in steps_of(types)]


def test_steps_run_in_their_order_and_an_interrupted_one_again() -> None:
    job = steps("Q8_0", "Q4_0")
    for step in job:
        assert next_of(job) is step
        step.state = StepState.RUNNING
        assert next_of(job) is step
        step.state = StepState.SUCCEEDED
    assert next_of(job) is JobState.SUCCEEDED


@pytest.mark.parametrize("failing", range(7))
def test_a_step_that_fails_stops_its_own_type_only(failing: int) -> None:
    job = steps("Q8_0", "Q4_0")
    for _ in range(20):
        step = next_of(job)
        if isinstance(step, JobState):
            break
        step.state = StepState.FAILED if job.index(step) == failing else StepState.SUCCEEDED
    assert step is (JobState.PARTIAL if failing else JobState.FAILED)
    untouched = [each.type for each in job if each.state == StepState.WAITING]
    assert set(untouched) <= ({job[failing].type} if failing else {"Q8_0", "Q4_0"})


def test_every_state_of_every_step_leads_on() -> None:
    for states in itertools.product(StepState, repeat=4):
        job = steps("Q8_0")
        for step, state in zip(job, states, strict=True):
            step.state = state
        decided = next_of(job)
        assert decided in JobState if isinstance(decided, JobState) else decided.state in ("WAITING", "RUNNING")


def test_every_type_is_one_of_llama_cpp() -> None:
    assert set(QUANTISATIONS) <= set(FILE_TYPES.values())
    for item in QUANTISATIONS.values():
        assert FILE_TYPES[item.file_type] == item.name
    bits = [item.bits for item in QUANTISATIONS.values()]
    assert bits == sorted(bits, reverse=True)
    limits = [item.max_kl for item in QUANTISATIONS.values()]
    assert limits == sorted(limits)


@pytest.mark.parametrize(("written", "meant"), [("q4km", "Q4_K_M"), ("Q4-K-M", "Q4_K_M"), ("Q80", "Q8_0")])
def test_the_nearest_type_is_named(written: str, meant: str) -> None:
    assert meant in nearest(written)
    with pytest.raises(MeshError, match=meant) as raised:
        submission.check_types([written], importance_matrix=False)
    assert raised.value.reason == Reason.ERROR_REASON_INVALID_FIELD


def settings(**values: str) -> Settings:
    """Settings of a mesh, whatever the environment has."""
    return Settings(**{"llama_imatrix_bin": "", "llama_quantize_bin": "", **values})


def model(**fields: object) -> Model:
    return Model(model_uuid="m", size_bytes=2_000, gguf=GgufMetadata(parameter_count=1_000, **fields))  # type: ignore[arg-type]


def refusal(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(MeshError) as raised:
        call(*arguments, **named)  # type: ignore[operator]
    return str(raised.value.metadata.get("rule"))


def test_a_job_that_cannot_run_is_refused_with_its_rule() -> None:
    assert refusal(submission.check_types, ["Q8_0", "IQ1_S"], importance_matrix=False) == "matrix"
    submission.check_types(["Q8_0", "IQ1_S"], importance_matrix=True)
    quantised = model(quantisation="Q4_1")
    assert refusal(submission.check_source, quantised, allow_requantize=False) == "quantised"
    submission.check_source(quantised, allow_requantize=True)
    submission.check_source(model(quantisation="BF16"), allow_requantize=False)
    assert refusal(submission.check_engine, settings(llama_quantize_bin="/nowhere/llama-quantize")) == "quantiser"
    assert refusal(submission.check_space, 2, 1) == "disk"
    submission.check_space(1, 1)


@pytest.mark.parametrize(
    ("imatrix", "quantize", "words"),
    [
        ("", "sh", "LLAMA_IMATRIX_BIN is not set; build"),
        ("sh", "", "LLAMA_QUANTIZE_BIN is not set; build"),
        ("", "", "LLAMA_IMATRIX_BIN is not set, LLAMA_QUANTIZE_BIN is not set; build"),
        ("/nowhere/llama-imatrix", "sh", "LLAMA_IMATRIX_BIN is /nowhere/llama-imatrix, which is not a program"),
    ],
)
def test_all_that_a_matrix_lacks_is_named_at_once(imatrix: str, quantize: str, words: str) -> None:
    found = submission.missing_for_matrix(settings(llama_imatrix_bin=imatrix, llama_quantize_bin=quantize))
    assert words in found
    assert "start the mesh again" in found


def test_a_matrix_lacks_nothing_if_both_programs_are_there() -> None:
    assert submission.missing_for_matrix(settings(llama_imatrix_bin="sh", llama_quantize_bin="sh")) == ""


def test_a_matrix_that_is_given_needs_only_the_quantiser_and_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission.importlib.util, "find_spec", lambda name: name)
    options = QuantOptions(importance_matrix_source="file:///m")
    submission.check_types(["IQ1_S", "IQ3_XS"], importance_matrix=submission.uses_matrix(options))
    submission.check_installation(options, settings(llama_quantize_bin="sh"))
    with pytest.raises(MeshError, match=r"needs llama.cpp's llama-quantize: LLAMA_QUANTIZE_BIN is not set; build it"):
        submission.check_installation(options, settings())
    argo = settings(quant_engine="argo", minio_endpoint="m:1", argo_image="i", llama_quantize_bin="/q")
    with pytest.raises(MeshError, match="pods cannot read an importance matrix of this machine") as refused:
        submission.check_installation(options, argo)
    assert refused.value.metadata["rule"] == "engine"


def test_the_matrix_is_measured_before_the_types_are_made() -> None:
    kinds = [kind for kind, _ in steps_of(["Q8_0"], importance_matrix=True)]
    assert kinds == ["fetch", "imatrix", "quantize", "verify", "publish"]
    job = [FakeStep(kind, "" if kind in ("fetch", "imatrix") else "Q8_0", "SUCCEEDED") for kind in kinds]
    job[1].state = "FAILED"
    job[2].state = job[3].state = job[4].state = "SKIPPED"
    assert next_of(job) == JobState.FAILED


def test_a_missing_quantiser_is_named_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission.importlib.util, "find_spec", lambda name: None if name == "cyllama" else name)
    with pytest.raises(
        MeshError, match=r"cyllama not installed: `\S+ -m pip install .*\[engine,quant\]'` .* LLAMA_QUANTIZE_BIN"
    ):
        submission.check_engine(settings())
    submission.check_engine(settings(llama_quantize_bin="sh"))


def test_jobs_on_a_cluster_need_an_image_a_bucket_and_the_clients_and_no_quantiser_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"cyllama"}
    monkeypatch.setattr(submission.importlib.util, "find_spec", lambda name: None if name in missing else name)
    argo = settings(quant_engine="argo", minio_endpoint="minio:9000", argo_image="llamesh:1")
    submission.check_engine(argo)
    assert submission.space_for_jobs(argo, []) is None
    submission.check_space(1 << 60, None)
    on_image = argo.model_copy(update={"llama_imatrix_bin": "/opt/i", "llama_quantize_bin": "/opt/q"})
    submission.check_installation(QuantOptions(importance_matrix=True), on_image)
    with pytest.raises(MeshError, match="needs MINIO_ENDPOINT and LLAMESH_ARGO_IMAGE"):
        submission.check_engine(settings(quant_engine="argo"))
    missing.add("hera")
    with pytest.raises(MeshError, match="hera not installed"):
        submission.check_engine(argo)


def test_the_space_of_a_job_is_that_of_all_types_and_one_copy_each() -> None:
    large = Model(size_bytes=2 << 40, gguf=GgufMetadata(parameter_count=1 << 40))
    alone = submission.needed_bytes(large, ["Q4_0"])
    assert alone > 2 * (1 << 40) * 4.5 / 8 + large.size_bytes
    assert submission.needed_bytes(large, ["Q4_0", "Q8_0"]) > alone + 2 * (1 << 40)


@pytest.mark.parametrize(
    ("uuid", "name"),
    [
        ("smol-f16.gguf", "smol"),
        ("smol.BF16", "smol"),
        ("smol", "smol"),
        ("f16", "f16"),
        ("F16.gguf", "F16"),
    ],
)
def test_variants_are_called_as_the_source_without_its_type(uuid: str, name: str) -> None:
    assert submission.default_name(uuid) == name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("this quantization requires an imatrix!", "importance matrix"),
        ("requantizing from type q4_1 is disabled", "type q4_1 already"),
        ("error loading model: unknown model architecture: 'wonder'", "architecture wonder"),
        ("tensor 'x' data is not within the file bounds, model is corrupted or incomplete", "truncated"),
        ("basic_ios::clear: iostream error", "disk"),
        ("gguf_init_from_file_impl: invalid magic characters", "not a GGUF file"),
        ("something new", "something new"),
    ],
)
def test_known_failure_messages_of_llama_cpp_are_translated(line: str, words: str) -> None:
    assert words in translate(["llama_model_quantize: begins", line, "main: failed to quantize model"][:2])
