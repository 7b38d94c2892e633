"""The memory estimate against what llama.cpp itself reported for its buffers (build 11549, CPU)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.contract.fit import CACHE_TYPES, ModelShape, estimate_memory

MIB = 1 << 20

SMOLLM2 = ModelShape(
    tensor_bytes=96_576_768,
    context_length=8192,
    layer_count=30,
    head_count=9,
    kv_head_count=3,
    key_length=64,
    value_length=64,
    embedding_length=576,
    vocabulary_size=49_152,
)
SENTENCE = ModelShape(
    tensor_bytes=2_079_360,
    context_length=2048,
    layer_count=1,
    head_count=9,
    kv_head_count=9,
    key_length=32,
    value_length=32,
    embedding_length=288,
    vocabulary_size=277,
)

# model, context, slots, KV buffer in MiB, compute and output buffers in MiB, resident memory in MiB
MEASURED = [
    (SMOLLM2, 4096, 1, 90, 18.64 + 0.19, 236.8),
    (SMOLLM2, 4096, 4, 90, 15.64 + 0.75, 236.8),
    (SMOLLM2, 16_384, 4, 360, 18.64 + 0.75, 506.9),
    (SMOLLM2, 65_536, 4, 1440, 30.64 + 0.75, 1587.9),
    (SENTENCE, 4096, 1, 4.5, 7.96, 36.6),
    (SENTENCE, 4096, 4, 4.5, 4.96, 36.7),
    (SENTENCE, 16_384, 4, 18, 7.96, 51.0),
    (SENTENCE, 65_536, 4, 72, 19.96, 107.4),
]


@pytest.mark.parametrize(("model", "context", "slots", "kv", "buffers", "resident"), MEASURED)
def test_holds_what_llama_cpp_took(
    model: ModelShape, context: int, slots: int, kv: float, buffers: float, resident: float
) -> None:
    estimate = estimate_memory(model, context=context, slots=slots)
    assert estimate.weights_bytes == model.tensor_bytes
    assert estimate.kv_cache_bytes == int(kv * MIB)
    assert estimate.overhead_bytes > buffers * MIB
    assert resident * MIB < estimate.engine_bytes < (resident + 64) * MIB


def test_without_a_context_the_models_own_is_taken() -> None:
    assert estimate_memory(SMOLLM2) == estimate_memory(SMOLLM2, context=8192)
    assert estimate_memory(replace(SMOLLM2, context_length=0)) == estimate_memory(SMOLLM2, context=4096)


def test_the_context_is_rounded_up_as_llama_cpp_does() -> None:
    assert estimate_memory(SMOLLM2, context=4000).kv_cache_bytes == 90 * MIB


def test_a_quantised_cache_is_smaller_by_its_bits() -> None:
    full = estimate_memory(SMOLLM2, context=4096).kv_cache_bytes
    for kind, (block, size) in CACHE_TYPES.items():
        got = estimate_memory(SMOLLM2, context=4096, cache_type_k=kind, cache_type_v=kind).kv_cache_bytes
        assert got == full * size // (2 * block)


def test_keys_and_values_count_apart() -> None:
    mixed = estimate_memory(SMOLLM2, context=4096, cache_type_k="q8_0", cache_type_v="f32").kv_cache_bytes
    assert mixed == 4096 * 30 * (192 * 34 // 32 + 192 * 4)


def test_a_slot_more_takes_no_more_context() -> None:
    one, four = (estimate_memory(SMOLLM2, context=4096, slots=slots) for slots in (1, 4))
    assert one.kv_cache_bytes == four.kv_cache_bytes


def test_without_flash_attention_scores_of_every_head_are_held() -> None:
    with_flash, without = (
        estimate_memory(SMOLLM2, context=4096, flash_attention=on).overhead_bytes for on in (True, False)
    )
    assert without - with_flash == 9 * 4096 * 512 * 4


def test_the_prompt_cache_and_replicas_add_up() -> None:
    one = estimate_memory(SMOLLM2, context=4096)
    three = estimate_memory(SMOLLM2, context=4096, prompt_cache_mib=100, replicas=3)
    assert three.total_bytes == 3 * (one.total_bytes + 100 * MIB)


def test_unknown_cache_types_and_senseless_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown KV cache type 'q2_k'"):
        estimate_memory(SMOLLM2, cache_type_k="q2_k")
    for wrong in ({"slots": 0}, {"replicas": 0}, {"micro_batch": 0}, {"context": -1}, {"prompt_cache_mib": -1}):
        with pytest.raises(ValueError, match="start at"):
            estimate_memory(SMOLLM2, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantisation", "mapped", "shared"),
    [("Q8_0", True, True), ("F16", True, True), ("Q8_0", False, False), ("Q4_K_M", True, False), ("", True, False)],
)
def test_weights_are_shared_where_llama_cpp_uses_them_as_they_are_mapped(
    quantisation: str, mapped: bool, shared: bool
) -> None:
    model = replace(SMOLLM2, quantisation=quantisation)
    three = estimate_memory(model, context=4096, replicas=3, mapped=mapped)
    assert three.shared_weights_bytes == (model.tensor_bytes if shared else 0)
    assert three.engine_bytes == three.shared_weights_bytes + three.own_bytes
    assert three.total_bytes == three.shared_weights_bytes + 3 * three.own_bytes
