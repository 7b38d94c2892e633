"""Estimated sizes of variants, against what llama.cpp's own quantiser makes of small models."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import sentence
from llamesh.kit.config import Settings
from llamesh.kit.gguf import read_gguf
from llamesh.v1.model_pb2 import GgufMetadata, Model
from llamesh.v1.quant_pb2 import EstimateQuantJobResponse, QuantOptions
from services.quant.estimates import estimate
from services.quant.job_sources import JobSource
from services.quant.quantisations import QUANTISATIONS
from services.quant.variant_sizes import variant_bytes, weight_bits

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("cyllama") is None, reason="extra quant")


def facts_of(path: Path) -> GgufMetadata:
    """What the catalogue knows of a file."""
    with path.open("rb") as file:
        found = read_gguf(file, path.stat().st_size)
    return GgufMetadata(
        parameter_count=found.parameter_count,
        embedding_length=found.embedding_length,
        vocabulary_size=found.vocabulary_size,
    )


def made_bytes(source: Path, target: Path, of_type: str) -> int:
    """The bytes of the tensors that llama.cpp makes."""
    words = [sys.executable, "-m", "services.quant.step.quantiser", str(source), str(target), of_type, "1"]
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_QUANTIZE_BIN"}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    with target.open("rb") as file:
        return read_gguf(file, target.stat().st_size).tensor_bytes


@needs_llama_cpp
@pytest.mark.parametrize("of_type", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_S", "Q4_K_M", "IQ4_XS", "Q3_K_S", "Q2_K"])
def test_the_estimate_of_rows_that_are_no_multiples_of_256_is_near(of_type: str, tmp_path: Path) -> None:
    from tests.quantised_models import write_source

    source = write_source(tmp_path / "source.gguf", size=sentence.Size(blocks=2, width=576, feed_forward=1536))
    made = made_bytes(source, tmp_path / "made.gguf", of_type)
    assert variant_bytes(facts_of(source), of_type) == pytest.approx(made, rel=0.1)


@pytest.mark.parametrize(
    ("of_type", "row", "bits"),
    [
        ("Q4_K_M", 4096, QUANTISATIONS["Q4_K_M"].bits),
        ("Q4_K_M", 0, QUANTISATIONS["Q4_K_M"].bits),
        ("Q4_K_M", 576, 5.5),
        ("Q5_K_S", 576, 6.0),
        ("Q6_K", 576, 8.5),
        ("Q2_K", 576, 4.5),
        ("IQ1_S", 576, 4.5),
        ("IQ4_NL", 576, QUANTISATIONS["IQ4_NL"].bits),
        ("Q4_0", 576, 4.5),
        ("Q8_0", 100, 16.0),
        ("BF16", 100, 16.0),
    ],
)
def test_a_row_gets_the_type_that_llama_cpp_takes(of_type: str, row: int, bits: float) -> None:
    assert weight_bits(of_type, row) == bits


def test_an_estimate_and_the_disk_of_a_job_know_the_fallbacks() -> None:
    def estimated(width: int) -> EstimateQuantJobResponse:
        facts = GgufMetadata(quantisation="F16", parameter_count=10**9, embedding_length=width, vocabulary_size=1000)
        source = JobSource(Model(model_uuid="m", size_bytes=2 * 10**9, gguf=facts))
        return estimate(source, ["Q2_K"], QuantOptions(), Settings(), free=None)

    usual, larger = estimated(4096), estimated(4000)
    assert usual.types[0].bits_per_weight == QUANTISATIONS["Q2_K"].bits
    assert larger.types[0].bits_per_weight == pytest.approx(4.52, abs=0.01)
    assert larger.types[0].size_bytes > 1.4 * usual.types[0].size_bytes
    assert larger.needed_bytes > usual.needed_bytes


def test_a_model_of_unknown_width_has_the_bits_of_its_type() -> None:
    assert variant_bytes(GgufMetadata(parameter_count=8_000), "Q4_0") == 4_500
