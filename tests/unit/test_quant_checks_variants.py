"""A variant passes only if it is a sound quantisation of its source: each way to damage one is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from services.quant.step.report import StepRefusedError
from tests.quantised_models import rewrite, write_source

pytest.importorskip("xllamacpp", reason="variants are compared with what the engine's library makes")

from services.quant.step import measurement
from services.quant.step.verify import check_header, check_rows, fallbacks, opened, sampled, seed_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "source.gguf")


def verified(source: Path, variant: Path, of_type: str, seed: int = 3) -> int:
    first, second = opened(source), opened(variant)
    check_header(first, second, of_type)
    return check_rows(first, second, seed, {})


@pytest.mark.parametrize("of_type", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_a_sound_variant_passes(source: Path, tmp_path: Path, of_type: str) -> None:
    rewrite(source, tmp_path / "variant.gguf", of_type)
    assert verified(source, tmp_path / "variant.gguf", of_type) == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damage", ["scaled", "of another model", "zero", "swapped"])
def test_damaged_weights_are_found_in_whichever_tensor_is_sampled(
    source: Path, tmp_path: Path, damage: str, seed: int
) -> None:
    def change(_: str, weights: Any) -> Any:
        match damage:
            case "scaled":
                return weights * 1.1
            case "of another model":
                return numpy.random.default_rng(9).normal(0, 0.05, weights.shape).astype(numpy.float32)
            case "zero":
                return weights * 0
            case _:
                return weights[::-1].copy()

    rewrite(source, tmp_path / "variant.gguf", "Q8_0", change)
    with pytest.raises(StepRefusedError, match="error of"):
        verified(source, tmp_path / "variant.gguf", "Q8_0", seed)


@pytest.mark.parametrize("seed", range(5))
def test_an_error_of_two_percent_more_than_the_second_build_has_is_the_most(
    source: Path, tmp_path: Path, seed: int
) -> None:
    """Weights that are scaled by 1.01 before have 1.4 percent more error as Q4_0; by 1.015 they have 2.6 percent more."""
    rewrite(source, tmp_path / "close.gguf", "Q4_0", lambda _, weights: weights * 1.01)
    assert verified(source, tmp_path / "close.gguf", "Q4_0", seed) == 2
    rewrite(source, tmp_path / "far.gguf", "Q4_0", lambda _, weights: weights * 1.015)
    with pytest.raises(StepRefusedError, match="error of"):
        verified(source, tmp_path / "far.gguf", "Q4_0", seed)


def test_another_type_than_wanted_is_found(source: Path, tmp_path: Path) -> None:
    rewrite(source, tmp_path / "variant.gguf", "Q8_0")
    with pytest.raises(StepRefusedError, match="Q8_0"):
        verified(source, tmp_path / "variant.gguf", "Q4_0")


def test_a_truncated_file_is_found(source: Path, tmp_path: Path) -> None:
    variant = tmp_path / "variant.gguf"
    rewrite(source, variant, "Q8_0")
    variant.write_bytes(variant.read_bytes()[:-4096])
    with pytest.raises(StepRefusedError, match="truncated") as raised:
        verified(source, variant, "Q8_0")
    assert raised.value.reason == "VARIANT_UNSOUND"


def test_one_tensor_of_each_type_is_sampled_and_the_same_each_time(source: Path) -> None:
    tensors = list(opened(source).tensors.values())
    names = sampled(tensors, seed_of("job_1", "Q8_0"))
    assert names == sampled(tensors, seed_of("job_1", "Q8_0"))
    assert {tensor.type for tensor in tensors} == {tensor.type for tensor in tensors if tensor.name in names}


def test_tensors_whose_rows_do_not_divide_into_blocks_are_counted(source: Path) -> None:
    tensors = opened(source).tensors.values()
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.shape[0] % 256]
    assert len(fallbacks(tensors, "Q4_K_M")) == len(matrices) > 0
    assert fallbacks(tensors, "Q4_0") == []


@pytest.mark.parametrize(
    ("of_type", "like"), [("IQ4_NL", "IQ4_NL"), ("Q4_K_M", "_K"), ("IQ4_XS", "IQ4_XS"), ("Q8_0", "Q8_0")]
)
def test_a_fallback_is_a_tensor_that_llama_cpp_gave_another_type(
    source: Path, tmp_path: Path, of_type: str, like: str
) -> None:
    """The rows of this model divide into blocks of 32, and not into blocks of 256."""
    pytest.importorskip("cyllama", reason="llama.cpp's own quantiser is not installed: extra quant")
    variant = tmp_path / "variant.gguf"
    words = (sys.executable, "-m", "services.quant.step.quantiser", str(source), str(variant), of_type, "1")
    subprocess.run(words, check=True, capture_output=True)
    matrices = [tensor for tensor in opened(variant).tensors.values() if len(tensor.shape) > 1]
    given = [tensor.name for tensor in matrices if like in tensor.type]
    assert fallbacks(matrices, of_type) == ([] if given else [tensor.name for tensor in matrices])


def test_the_divergence_is_that_of_the_definition() -> None:
    tokens = numpy.array([0, 1, 0])
    source = numpy.log(numpy.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]))
    variant = numpy.log(numpy.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]]))
    found = measurement.compared(source, variant, tokens)
    assert found.tokens == 2
    assert found.kl_divergence == pytest.approx((0.5 * numpy.log(2) + 0.5 * numpy.log(2 / 3)) / 2)
    assert found.same_top_token == 0.5
    assert found.perplexity == pytest.approx((0.75 * 0.9) ** -0.5)
    assert found.source_perplexity == pytest.approx((0.5 * 0.9) ** -0.5)
    same = measurement.compared(source, source, tokens)
    assert (same.kl_divergence, same.same_top_token) == (0, 1)
