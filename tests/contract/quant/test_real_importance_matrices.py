"""llama.cpp's own llama-imatrix and llama-quantize: variants with an importance matrix pass every check, and are better.

The programs are built from llama.cpp's source, which takes minutes, so they are not on every machine: TEST_LLAMA_TOOLS names their folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import gguf
import pytest

from engine import sentence
from llamesh.v1 import quant_pb2
from services.quant.job_spec import CALIBRATION
from tests.contract.conftest import StartMain
from tests.contract.quant.conftest import Quant
from tests.quantised_models import write_source

TOOLS = os.environ.get("TEST_LLAMA_TOOLS", "")
PROGRAMS = {"llama_imatrix_bin": f"{TOOLS}/llama-imatrix", "llama_quantize_bin": f"{TOOLS}/llama-quantize"}
MATRIX = quant_pb2.QuantOptions(importance_matrix=True)
pytestmark = [
    pytest.mark.skipif(
        not TOOLS, reason="no llama-imatrix and llama-quantize here: set TEST_LLAMA_TOOLS to their folder"
    ),
    pytest.mark.parametrize("database_url", [None], ids=["sqlite"]),
]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256."""
    size = sentence.Size(width=512, feed_forward=256)
    return write_source(tmp_path_factory.mktemp("wide") / "tiny-f16.gguf", size=size)


@pytest.fixture
async def own(prepared: Quant, start_main: StartMain) -> Quant:
    from services.quant.service import run

    prepared.settings = prepared.settings.model_copy(update=PROGRAMS)
    await start_main(prepared.settings, "quant", run)
    return prepared


async def test_a_matrix_makes_variants_that_pass_every_check(own: Quant) -> None:
    job = await own.ended((await own.create("Q4_K_M", "IQ2_XXS", options=MATRIX, max_kl_divergence=1000)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    assert job.steps[1].done == job.steps[1].total > 1
    models = await own.models()
    for model in models.values():
        assert model.report.compared_tensors >= 2
        assert model.report.measured_tokens > 100
        assert len(model.report.matrix_sha256) == 64
    (path,) = [
        path
        for name, path in own.objects().items()
        if name in models["tiny-Q4_K_M"].object_key and name.endswith("gguf")
    ]
    fields = gguf.GGUFReader(path).fields
    assert fields["quantize.imatrix.file"].contents() == "matrix.gguf", "no path of this machine"
    assert fields["quantize.imatrix.dataset"].contents() == "calibration.txt"
    await own.tidy(2)


async def test_a_text_that_is_too_short_is_said_in_words(own: Quant) -> None:
    options = quant_pb2.QuantOptions(importance_matrix=True, calibration_text="too short")
    job = await own.ended((await own.create("Q8_0", options=options)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_FAILED
    assert "the text is too short for an importance matrix" in job.error.message, job.steps[1].log


async def run_program(*words: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode(errors="replace")[-2_000:]


@pytest.mark.parametrize("form", ["gguf", "dat"])
async def test_a_matrix_that_is_given_makes_the_bytes_that_the_original_makes(
    own: Quant, source: Path, tmp_path: Path, form: str
) -> None:
    folder = own.settings.home / "import"
    folder.mkdir(parents=True)
    matrix = folder / f"of tiny.{form}"
    words = ("--model", source, "--file", CALIBRATION, "--output", matrix, "--output-format", form)
    await run_program(PROGRAMS["llama_imatrix_bin"], *words, "--ctx-size", "512")
    assert (matrix.read_bytes()[:4] == b"GGUF") is (form == "gguf")
    options = quant_pb2.QuantOptions(importance_matrix_source=matrix.as_uri())
    job = await own.ended((await own.create("Q4_K_M", "IQ2_XXS", options=options, max_kl_divergence=1000)).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    for of_type in ("Q4_K_M", "IQ2_XXS"):
        model = (await own.models())[f"tiny-{of_type}"]
        assert model.report.matrix_sha256 == hashlib.sha256(matrix.read_bytes()).hexdigest()
        made = gguf.GGUFReader(own.objects()[model.object_key.rpartition("/")[2]])
        await run_program(PROGRAMS["llama_quantize_bin"], "--imatrix", matrix, source, tmp_path / of_type, of_type)
        expected = gguf.GGUFReader(tmp_path / of_type)
        assert [(each.name, each.tensor_type) for each in made.tensors] == [
            (each.name, each.tensor_type) for each in expected.tensors
        ]
        for own_tensor, other in zip(made.tensors, expected.tensors, strict=True):
            assert own_tensor.data.tobytes() == other.data.tobytes(), own_tensor.name
        entries = "quantize.imatrix.entries_count"
        assert made.fields[entries].contents() == expected.fields[entries].contents()
        assert made.fields["quantize.imatrix.file"].contents() == "matrix.gguf", "no path of this machine"
    await own.tidy(2)
