"""`llamesh quantize` reads its options, and says refusals of the Quant service with them; names of variants lead to their fetch."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from tests.contract.fake_quant_service import FakeQuantService

Capture = pytest.CaptureFixture[str]
TYPES = ["--types", "Q8_0"]

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture
def quant() -> FakeQuantService:
    return FakeQuantService()


@pytest.mark.parametrize("types", ["q8_0,Q4_k_m", "Q8_0, Q4_K_M,q8_0,"])
def test_types_have_any_case_and_count_once(quant: FakeQuantService, types: str) -> None:
    assert run(["quantize", "m0", "--types", types]) == Exit.OK
    assert list(quant.requests[0].types) == ["Q8_0", "Q4_K_M"]


def test_a_matrix_on_the_mesh_is_named_by_its_address(quant: FakeQuantService) -> None:
    assert run(["quantize", "m0", *TYPES, "--imatrix", "file:///import/m.dat"]) == Exit.OK
    assert quant.requests[0].options.importance_matrix_source == "file:///import/m.dat"
    assert not quant.requests[0].options.importance_matrix


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantize", "m0", "--types", "Q8_0", "Q4_K_M"], "commas between them: --types Q4_K_M,Q8_0"),
        (["quantize", "m0", *TYPES, "--imatrix", "x"], "x: No such file or directory"),
        (["quantize", "owner/repo", *TYPES], "`llamesh quantize hf:owner/repo --types Q4_K_M`"),
        (["quantize", "folder", *TYPES], "`llamesh quantize ./folder --types Q4_K_M`"),
        (["quantize", "./folder/model.safetensors", *TYPES], "`llamesh quantize ./folder --types Q4_K_M`"),
        (["quantize", "./pickled", *TYPES], "has its weights in pickle files"),
        (["pull", "folder"], "`llamesh quantize ./folder --types Q4_K_M`"),
        (["pull", "./folder/model.safetensors"], "`llamesh quantize ./folder --types Q4_K_M`"),
        (["pull", "quant:"], "quant: names no model"),
        (["pull", "llama3"], "ollama:llama3 is Ollama's model of this name, `llamesh search llama3`"),
    ],
)
def test_what_was_probably_meant_is_named(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, weights in (("folder", "model.safetensors"), ("pickled", "pytorch_model.bin")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / weights).write_bytes(b"12345678")
    assert run(words) != Exit.OK
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "message", "said"),
    [
        (
            "QUANT_REFUSED",
            "it is quantised: set allow_requantize and accept a worse result",
            "set --allow-requantize and",
        ),
        ("QUANT_REFUSED", "IQ1_S needs it: set importance_matrix, or", "set --importance-matrix, or"),
        ("INVALID_FIELD", "name: must be short; types[0]: is long", "--name: must be short; --types: is long"),
        ("INVALID_FIELD", "options.calibration_text: is long", "error: --calibration: is long"),
        ("INVALID_FIELD", "max_kl_divergence: must be 0 or more", "error: --max-kl: must be 0 or more"),
    ],
)
def test_a_refusal_names_options_of_the_command(
    quant: FakeQuantService, capsys: Capture, reason: str, message: str, said: str
) -> None:
    quant.refusal = (grpc.StatusCode.INVALID_ARGUMENT, reason, message)
    for words in (TYPES, [*TYPES, "--dry-run"]):
        assert run(["quantize", "m0", *words]) != Exit.OK
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "metadata", "said"),
    [
        ("QUANT_REFUSED", {"rule": "matrix", "type": "IQ1_S"}, "--importance-matrix` measures a matrix"),
        ("QUANT_REFUSED", {"rule": "quantised"}, "--allow-requantize accepts this one"),
        ("SOURCE_REFUSED", {"rule": "pickle"}, "`llamesh search` finds"),
        (
            "SOURCE_REFUSED",
            {"rule": "checkpoint", "source": "hf:a/b-GGUF@1"},
            "`llamesh pull hf:a/b-GGUF@1` comes first",
        ),
        ("QUANT_MODEL_EXISTS", {"jobId": "job_7", "modelUuid": "m"}, "`llamesh jobs cancel job_7`"),
        ("QUANT_MODEL_EXISTS", {"jobId": "job_7", "modelUuid": "m", "rule": "making"}, "`llamesh jobs watch job_7`"),
        (
            "QUANT_MODEL_EXISTS",
            {"jobId": "job_7", "modelUuid": "m", "rule": "exists"},
            "hint: `llamesh run quant:m` uses it; give another --name, or remove it: `llamesh variants rm m`\n",
        ),
    ],
)
def test_a_rule_has_a_remedy_of_its_own(
    quant: FakeQuantService, capsys: Capture, reason: str, metadata: dict[str, str], said: str
) -> None:
    quant.refusal = (grpc.StatusCode.FAILED_PRECONDITION, reason, "it is refused", metadata)
    assert run(["quantize", "m0", *TYPES]) != Exit.OK
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("line", ["serve {}", "fit {}", "describe {}", "run {}", "pull {}", "quantize {} --types Q8_0"])
def test_a_variant_that_is_not_fetched_yet_is_named_with_its_address(
    quant: FakeQuantService, capsys: Capture, line: str
) -> None:
    quant.variants = ["none"]
    assert run(line.format("none").split()) == Exit.NOT_FOUND
    assert "`llamesh pull quant:none`" in capsys.readouterr().err
