"""The tensors of a checkpoint as llama.cpp wants them: their names, their order of rows, and their types.

Invariant: no weight is changed. Matrices keep their type and vectors become F32, which holds every F16 and BF16; rows of attention matrices
are only put into another order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy

from services.quant.checkpoint_config import CheckpointConfig, shown
from services.quant.step.safetensors_files import NUMPY_TYPES, StoredTensor

_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$|\.attn\.masked_bias$")
_OUTPUT = "lm_head.weight"
_PREFIXES = ("model.", "lm_head.")
_PERMUTED = re.compile(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$")
_INTERLEAVED = ("llama",)
"""Architectures whose rotation pairs neighbouring rows in llama.cpp, and rows of two halves in a checkpoint."""


@dataclass(frozen=True, slots=True)
class LlamaTensor:
    """One tensor of a GGUF file. `load` gives its bytes as an array; it is called once, when they are written."""

    name: str
    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    load: Callable[[], Any]

    @property
    def stored(self) -> numpy.dtype[Any]:
        """The type of numbers that are written."""
        return numpy.dtype(NUMPY_TYPES[self.type.name])

    @property
    def byte_count(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * self.stored.itemsize


class TensorsRefusedError(ValueError):
    """A tensor is missing, unknown, or has another shape than config.json says."""


def converted(config: CheckpointConfig, stored: Mapping[str, StoredTensor]) -> list[LlamaTensor]:
    """Return the tensors of the GGUF file. Raises TensorsRefusedError."""
    found = [_tensor(config, names, each) for names, each in _named(config, stored)]
    # First: it is the weights that prove the numbers of config.json.
    _check_complete(config, {tensor.name: tensor.shape for tensor in found})
    if factors := rope_factors(config):
        found.append(
            LlamaTensor(
                "rope_freqs.weight",
                gguf.GGMLQuantizationType.F32,
                (len(factors),),
                lambda: numpy.array(factors, numpy.float32),
            )
        )
    return found


def _named(config: CheckpointConfig, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    names = gguf.get_tensor_name_map(_architecture(config), config.layers)
    for name, tensor in stored.items():
        if _NOT_WEIGHTS.search(name) or (name == _OUTPUT and config.tied):
            continue
        # Names without the prefix are of models that make embeddings, whose pooling is not converted.
        new = names.get_name(name, try_suffixes=(".weight", ".bias")) if name.startswith(_PREFIXES) else None
        if new is None:
            raise TensorsRefusedError(f"the tensor {shown(name)} is not one of the architecture {config.architecture}")
        yield new, tensor


def _tensor(config: CheckpointConfig, name: str, stored: StoredTensor) -> LlamaTensor:
    found = _PERMUTED.search(stored.name) if config.architecture in _INTERLEAVED else None
    heads = (config.heads if found[1] == "q" else config.kv_heads) if found else 0
    if heads and stored.shape[0] != heads * config.head_width:
        raise TensorsRefusedError(
            f"the tensor {shown(stored.name)} has {stored.shape[0]} rows, not {heads * config.head_width}"
        )

    def load() -> Any:
        mapped = stored.mapped()
        ordered = interleaved(mapped, heads) if heads else mapped
        return ordered if len(stored.shape) > 1 else _as_f32(ordered, stored.type)

    kind = gguf.GGMLQuantizationType[stored.type if len(stored.shape) > 1 else "F32"]
    return LlamaTensor(name, kind, stored.shape, load)


def interleaved(rows: Any, heads: int) -> Any:
    """Return the rows of each head in the order in which llama.cpp rotates them: first of each half, second of each half, ..."""
    per_head = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return numpy.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(rows.shape)


def _as_f32(numbers: Any, of_type: str) -> Any:
    if of_type == "BF16":
        return (numbers.astype(numpy.uint32) << 16).view(numpy.float32)
    return numbers.astype(numpy.float32)


def rope_factors(config: CheckpointConfig) -> list[float]:
    """Return what each frequency of the rotation is divided by, for the scaling of Llama 3.1; empty for others.

    Low frequencies are divided by the factor, high ones are not, and those in between are mixed.
    """
    if config.rope.kind != "llama3":
        return []
    numbers = config.rope.numbers
    low, high, factor = numbers["low_freq_factor"], numbers["high_freq_factor"], numbers["factor"]
    trained = numbers["original_max_position_embeddings"]
    factors = []
    for at in range(0, config.head_width, 2):
        wave = 2 * math.pi * config.rope_base ** (at / config.head_width)
        mixed = min(max((trained / wave - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - mixed) / factor + mixed))
    return factors


def _check_complete(config: CheckpointConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise TensorsRefusedError unless the tensors that every model of these architectures has are there, in their shapes."""
    rows, kv_rows = config.heads * config.head_width, config.kv_heads * config.head_width
    of_layer = {
        "attn_norm": (config.width,),
        "attn_q": (rows, config.width),
        "attn_k": (kv_rows, config.width),
        "attn_v": (kv_rows, config.width),
        "attn_output": (config.width, rows),
        "ffn_norm": (config.width,),
        "ffn_gate": (config.feed_forward, config.width),
        "ffn_up": (config.feed_forward, config.width),
        "ffn_down": (config.width, config.feed_forward),
    }
    wanted = {f"blk.{n}.{name}.weight": shape for n in range(config.layers) for name, shape in of_layer.items()}
    for at in range(config.layers):
        if config.architecture == "qwen2":
            wanted |= {f"blk.{at}.attn_{name}.bias": (rows if name == "q" else kv_rows,) for name in "qkv"}
        if config.architecture == "qwen3":
            wanted |= {f"blk.{at}.attn_{name}_norm.weight": (config.head_width,) for name in "qk"}
    wanted |= {"output_norm.weight": (config.width,), "token_embd.weight": (config.vocabulary, config.width)}
    if not config.tied:
        # llama.cpp would take the embeddings instead.
        wanted["output.weight"] = (config.vocabulary, config.width)
    for name, shape in wanted.items():
        if (found := shapes.get(name)) != shape:
            said = f"has the shape {list(found)}, by config.json it has {list(shape)}" if found else "is missing"
            raise TensorsRefusedError(f"the tensor {name} {said}")


def _architecture(config: CheckpointConfig) -> gguf.MODEL_ARCH:
    return {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[config.architecture]
