"""The memory estimate against what llama.cpp itself reported for its buffers (build 11549, CPU)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.contract.memory_estimate import CACHE_TYPES, ModelShape, estimate_memory

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
def test_the_estimate_covers_the_memory_that_llama_cpp_used(
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
def test_weights_are_shared_if_llama_cpp_uses_the_mapped_file(quantisation: str, mapped: bool, shared: bool) -> None:
    model = replace(SMOLLM2, quantisation=quantisation)
    three = estimate_memory(model, context=4096, replicas=3, mapped=mapped)
    assert three.shared_weights_bytes == (model.tensor_bytes if shared else 0)
    assert three.engine_bytes == three.shared_weights_bytes + three.own_bytes
    assert three.total_bytes == three.shared_weights_bytes + 3 * three.own_bytes


GEMMA3 = replace(SMOLLM2, layer_count=26, kv_head_count=1, key_length=256, value_length=256, sliding_window=512)
"""The shape of a model whose layers have a window; its numbers only have to differ from each other."""


def test_checkpoints_hold_a_window_for_each_slot() -> None:
    none, four = (estimate_memory(GEMMA3, context=16_384, slots=4, checkpoints=count) for count in (0, 4))
    row = 26 * 2 * 256 * 2
    assert four.overhead_bytes - none.overhead_bytes == 4 * 4 * (512 + 512) * row
    assert estimate_memory(SMOLLM2, context=4096, checkpoints=32) == estimate_memory(SMOLLM2, context=4096)


def test_a_checkpoint_is_no_longer_than_the_context_of_a_slot() -> None:
    none, one = (estimate_memory(GEMMA3, context=1024, slots=4, checkpoints=count) for count in (0, 1))
    assert one.overhead_bytes - none.overhead_bytes == 4 * 256 * 26 * 2 * 256 * 2


def test_requests_that_share_one_context_have_checkpoints_and_outputs_of_their_own() -> None:
    shared = estimate_memory(GEMMA3, context=4096, slots=1, requests=4, checkpoints=1)
    alone = estimate_memory(GEMMA3, context=4096, slots=1, requests=1, checkpoints=1)
    assert shared.overhead_bytes - alone.overhead_bytes == 3 * (1024 * 26 * 2 * 256 * 2 + 4 * 49_152)


def test_speculation_computes_a_row_of_the_vocabulary_for_each_guess() -> None:
    plain, guessing = (estimate_memory(SMOLLM2, context=4096, slots=2, guesses=count) for count in (0, 8))
    assert guessing.overhead_bytes - plain.overhead_bytes == 4 * 49_152 * 2 * 16
    assert (
        estimate_memory(SMOLLM2, ngram_table=True).overhead_bytes - estimate_memory(SMOLLM2).overhead_bytes == 16 * MIB
    )


def test_a_draft_model_counts_once_more_for_each_engine() -> None:
    large = estimate_memory(replace(SMOLLM2, quantisation="Q8_0"), context=4096, replicas=2)
    draft = estimate_memory(replace(SENTENCE, quantisation="Q8_0"), context=4096)
    both = large.with_draft(draft)
    assert both.weights_bytes == large.weights_bytes + SENTENCE.tensor_bytes
    assert both.kv_cache_bytes == large.kv_cache_bytes + draft.kv_cache_bytes
    assert both.shared_weights_bytes == large.shared_weights_bytes
    assert both.total_bytes - large.total_bytes == 2 * (draft.engine_bytes - 64 * MIB)


# guesses at once, table of what was generated, draft model (SmolLM2 itself), resident memory in MiB after four chats at once
SPECULATING = [
    (3, False, True, 1027.4),
    (64, False, True, 1089.0),
    (64, True, False, 553.6),
    (48, False, False, 543.0),
]


@pytest.mark.parametrize(("guesses", "table", "draft", "resident"), SPECULATING)
def test_the_estimate_covers_the_memory_of_speculation(guesses: int, table: bool, draft: bool, resident: float) -> None:
    estimate = estimate_memory(SMOLLM2, context=16_384, slots=4, guesses=guesses, ngram_table=table)
    if draft:
        estimate = estimate.with_draft(estimate_memory(SMOLLM2, context=16_384, slots=4))
    assert resident * MIB < estimate.engine_bytes < (resident + 128) * MIB
