"""Estimate of the memory of an engine before its start: weights + KV cache + overhead, in bytes. Pure.

The KV cache is exact for full attention: llama.cpp allocates it for the whole context when it starts. A sliding window is not counted as
smaller, because the architecture decides whether llama.cpp uses it; the estimate is then too high, never too low. Weights that llama.cpp
maps from the file are the same pages for all engines of the model on one machine and count once. llama.cpp does not map them if
`--load-mode` forbids it (none, mlock), or if it repacks the weights for the processor: then each engine has a copy, and MAPPED_TYPES does
not have the type. The overhead is fitted to llama.cpp build 11549: it is above the memory that the process took, by less than 64 MiB for
the measured models (tests/unit/test_memory_estimate.py has the numbers).

A checkpoint holds the keys and values of a sliding window. The catalogue does not have the number of layers with a window, so all layers
count. A recurrent state is not in the catalogue and not counted: it is small compared to the KV cache that is counted for its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CACHE_TYPES: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}
"""Values and bytes of a block of each KV cache type."""

MAPPED_TYPES = frozenset({"F32", "F16", "BF16", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q8_0"})
"""Quantisations whose tensors stay in the mapped file; only measured ones are listed. Measured with llama.cpp build 11549 on x86-64 with
AVX2 and AVX-512, each with a model of 60 million weights that has one type in its blocks (33 MiB as Q4_0, 227 as F32). In addition to the
file, an engine of these types has 26 MiB of anonymous memory. With Q4_0, Q4_K and IQ4_NL it has 58 MiB, because it copies the weights.
Mixed quantisations such as Q4_K_M and types that were not measured count as copied: the estimate is then too high, never too low."""

DEFAULT_CONTEXT = 4096
"""Context, in tokens, if neither the request nor the file names one."""

_CONTEXT_STEP = 256
_MIB = 1 << 20
_PROGRAM = 64 * _MIB
"""The process, its libraries, and its data outside the buffers."""
_ACTIVATION_BYTES = 66
"""Bytes of the compute buffer for each token of a micro-batch and each value of the model's width: about 7 rows of the width and 2.4 rows
of a feed-forward layer, which is assumed to be four times as wide, 4 bytes each. Fitted to SmolLM2 (52) and the test model (28)."""
_NGRAM_TABLE = 16 * _MIB
"""llama.cpp's n-gram table for speculation: 4 Mi entries of 4 bytes."""
_TOKEN_BYTES = 256
"""The tokenizer's memory for each token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a model that the estimate uses: the fields of GgufMetadata of the same names."""

    tensor_bytes: int
    context_length: int
    layer_count: int
    head_count: int
    kv_head_count: int
    key_length: int
    value_length: int
    embedding_length: int
    vocabulary_size: int
    quantisation: str = ""
    sliding_window: int = 0
    """Tokens; 0: full attention."""
    projector_bytes: int = 0
    """Size of the projector's file; 0 if the model has none."""
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of the file of each LoRA adapter by its name."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of one engine in parts, and the number of replicas. All sizes are in bytes."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    replicas: int
    shared_weights_bytes: int = 0
    """The part of the weights that engines of one model on one machine share."""

    @property
    def engine_bytes(self) -> int:
        """Return the memory of one engine."""
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes

    @property
    def own_bytes(self) -> int:
        """Return the memory of each engine without shared weights."""
        return self.engine_bytes - self.shared_weights_bytes

    def with_adapters(self, size: int) -> MemoryEstimate:
        """Return the estimate with LoRA adapters of `size` bytes, which each engine copies."""
        return replace(self, overhead_bytes=self.overhead_bytes + size)

    def with_projector(self, size: int) -> MemoryEstimate:
        """Return the estimate with a projector of `size` bytes: its weights, which each engine copies, and as much to compute."""
        return replace(self, overhead_bytes=self.overhead_bytes + 2 * size)

    def with_draft(self, draft: MemoryEstimate) -> MemoryEstimate:
        """Return the estimate for the same engine with a draft model. The draft's weights count for each engine."""
        return replace(
            self,
            weights_bytes=self.weights_bytes + draft.weights_bytes,
            kv_cache_bytes=self.kv_cache_bytes + draft.kv_cache_bytes,
            overhead_bytes=self.overhead_bytes + draft.overhead_bytes - _PROGRAM,
        )

    @property
    def total_bytes(self) -> int:
        """Return the memory of all replicas on one machine."""
        return self.shared_weights_bytes + self.own_bytes * self.replicas


def estimate_memory(
    model: ModelShape,
    *,
    context: int = 0,
    slots: int = 1,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    micro_batch: int = 512,
    flash_attention: bool = True,
    prompt_cache_mib: int = 0,
    mapped: bool = True,
    replicas: int = 1,
    requests: int = 0,
    checkpoints: int = 0,
    guesses: int = 0,
    ngram_table: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of `replicas` engines.

    `context` is in tokens and shared by all slots (llama.cpp's `--ctx-size`); 0 means the model's own. `micro_batch` is
    `--ubatch-size`, `prompt_cache_mib` is `--cache-ram`, `mapped` is whether `--load-mode` maps the weights. `requests` is the number of
    concurrent requests: as many as slots, unless slots share one context. `checkpoints` is `--ctx-checkpoints` if the engine makes
    checkpoints, `guesses` the number of tokens that speculation verifies at once, `ngram_table` whether the engine has an n-gram table.
    Raises ValueError for an unknown cache type and for numbers below their minimum.
    """
    if min(slots, micro_batch, replicas) < 1 or min(context, prompt_cache_mib, requests, checkpoints, guesses) < 0:
        raise ValueError("slots, micro_batch and replicas start at 1, the other numbers at 0")
    requests = requests or slots
    tokens = _rounded(context or model.context_length or DEFAULT_CONTEXT, _CONTEXT_STEP)
    keys = _row_bytes(model.kv_head_count * model.key_length, cache_type_k)
    values = _row_bytes(model.kv_head_count * model.value_length, cache_type_v)
    window = min(_rounded(model.sliding_window + micro_batch, _CONTEXT_STEP), -(-tokens // slots))
    copies = requests * checkpoints * window * model.layer_count * (keys + values) if model.sliding_window else 0
    overhead = _overhead(model, tokens, slots, micro_batch, flash_attention) + prompt_cache_mib * _MIB
    return MemoryEstimate(
        weights_bytes=model.tensor_bytes,
        kv_cache_bytes=tokens * model.layer_count * (keys + values),
        overhead_bytes=overhead + copies + _outputs(model, requests, guesses) + (_NGRAM_TABLE if ngram_table else 0),
        replicas=replicas,
        shared_weights_bytes=model.tensor_bytes if mapped and model.quantisation in MAPPED_TYPES else 0,
    )


def _overhead(model: ModelShape, tokens: int, slots: int, micro_batch: int, flash_attention: bool) -> int:
    window = _rounded(-(-tokens // slots), _CONTEXT_STEP)
    # Every token of a micro-batch has a mask over the slot's context; without flash attention, it also has scores of every head.
    scores = 2 * window if flash_attention else (2 + 4 * model.head_count) * window
    compute = min(micro_batch, tokens) * (_ACTIVATION_BYTES * model.embedding_length + scores)
    return _PROGRAM + compute + model.vocabulary_size * _TOKEN_BYTES


def _outputs(model: ModelShape, requests: int, guesses: int) -> int:
    """Return the bytes of the logits: for each token of the vocabulary, one row for each request and two for each speculated token."""
    return 4 * model.vocabulary_size * requests * (1 + 2 * guesses)


def _row_bytes(values: int, cache_type: str) -> int:
    try:
        block, size = CACHE_TYPES[cache_type]
    except KeyError:
        raise ValueError(f"unknown KV cache type {cache_type!r}; known are {', '.join(CACHE_TYPES)}") from None
    return _rounded(values, block) // block * size


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step
