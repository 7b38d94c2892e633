"""llama.cpp's own quantiser, from the package cyllama: K types pass every check, and its refusals are said in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import sentence
from llamesh.kit.gguf import read_tensors
from llamesh.v1 import quant_pb2
from tests.contract.conftest import Connect, StartMain
from tests.contract.quant.conftest import Quant
from tests.quantised_models import write_source
from tests.split_models import split

pytest.importorskip("cyllama", reason="the package cyllama is not installed: extra quant")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256."""
    size = sentence.Size(width=512, feed_forward=256)
    return write_source(tmp_path_factory.mktemp("wide") / "tiny-f16.gguf", size=size)


@pytest.fixture
async def own(prepared: Quant, start_main: StartMain, connect: Connect) -> Quant:
    from services.quant.service import run

    prepared.settings = prepared.settings.model_copy(update={"llama_quantize_bin": ""})
    await start_main(prepared.settings, "quant", run)
    return prepared


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
async def test_k_types_are_measured_and_published(own: Quant) -> None:
    job = await own.create("Q4_K_M", "Q6_K")
    job = await own.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    models = await own.models()
    for model in models.values():
        assert model.report.fallback_tensors == 0
        assert model.report.compared_tensors >= 2
        assert model.report.measured_tokens > 100
        assert 0 < model.report.kl_divergence < 0.1
    assert models["tiny-Q6_K"].report.kl_divergence < models["tiny-Q4_K_M"].report.kl_divergence
    assert 4 < models["tiny-Q4_K_M"].report.bits_per_weight < models["tiny-Q6_K"].report.bits_per_weight
    await own.tidy(2)


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
async def test_a_model_is_published_without_being_quantised(own: Quant) -> None:
    job = await own.ended((await own.create("BF16", "F16")).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    for model in (await own.models()).values():
        assert 16 <= model.report.bits_per_weight < 16.5
        assert model.report.kl_divergence < 0.001
        assert model.report.compared_tensors >= 1
    await own.tidy(2)


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
async def test_a_model_in_parts_becomes_one_file(own: Quant, source: Path, tmp_path: Path) -> None:
    own.catalogue.hold(split(source, tmp_path / "parts", "tiny", 3))
    job = await own.ended((await own.create("Q4_K_M")).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    report = (await own.models())["tiny-Q4_K_M"].report
    assert report.compared_tensors >= 2
    assert report.measured_tokens > 100
    await own.tidy(1)
    (made,) = [path for name, path in own.objects().items() if name.endswith(".gguf")]
    with made.open("rb") as file:
        assert len(read_tensors(file, made.stat().st_size)[1]) == report.tensors


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
async def test_the_refusal_of_a_quantised_source_names_its_type(own: Quant, source: Path) -> None:
    """The catalogue says F16, and the file is Q8_0: what nobody could know at submission."""
    from tests.quantised_models import rewrite

    kept = source.with_suffix(".kept")
    source.rename(kept)
    try:
        rewrite(kept, source, "Q8_0")
        job = await own.create("Q4_K_M")
        job = await own.ended(job.job_id)
    finally:
        kept.replace(source)
    assert job.state == quant_pb2.QUANT_JOB_STATE_FAILED
    assert "type q8_0 already" in job.error.message
    await own.tidy(0)
