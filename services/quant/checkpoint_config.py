"""Reads `config.json` of a checkpoint: the architecture of the model and its numbers. No I/O.

A checkpoint is a model in the format of Hugging Face: `config.json`, a tokenizer, and the weights in safetensors files.
Invariant: the file is read without trust. No code that it names is run, and every number that it gives is checked for its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamesh.nearest import near

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "llama",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
    }
)
"""Class of the model in `architectures`, and the architecture as llama.cpp names it."""
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_MAX = 1 << 31
_PLAIN_ROPE = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS = ("silu", "swish")


class CheckpointRefusedError(Exception):
    """The checkpoint cannot be converted. `rule` names the rule that it breaks: architecture, quantised, code, config, ..."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are scaled to a longer context. `numbers` has the values of config.json by their names there."""

    kind: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What a checkpoint says of its model. Lengths are in numbers, `stored_type` is that of most weights."""

    architecture: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    vocabulary: int
    rms_epsilon: float
    rope_base: float
    rope: RopeScaling
    tied: bool
    """The output has the same weights as the embeddings."""
    stored_type: str


def refuse_unusable(config: Any) -> None:
    """Raise CheckpointRefusedError if no converter could convert a checkpoint: it is quantised already, or no model."""
    if (
        not isinstance(config, Mapping)
        or not isinstance(config.get("architectures"), list)
        or not config["architectures"]
    ):
        raise CheckpointRefusedError(
            "config", "its config.json names no architecture: it is not that of a language model"
        )
    if config.get("quantization_config"):
        raise CheckpointRefusedError(
            "quantised", "its weights are quantised already: take the checkpoint that they were made from"
        )


def stored_type(config: Mapping[str, Any]) -> str:
    """Return the type of most weights: BF16, F16 or F32. F16 if the checkpoint does not say."""
    return _STORED.get(str(config.get("dtype") or config.get("torch_dtype")), "F16")


def read_config(config: Any) -> CheckpointConfig:
    """Read the parsed config.json. Raises CheckpointRefusedError."""
    refuse_unusable(config)
    name = str(config["architectures"][0])
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise CheckpointRefusedError("code" if config.get("auto_map") else "architecture", _unknown(name, config))
    numbers = _Numbers(config)
    if config.get("hidden_act", "silu") not in _ACTIVATIONS:
        raise CheckpointRefusedError("config", f"its activation {config['hidden_act']!r} is not that of {name}")
    if config.get("use_sliding_window"):
        raise CheckpointRefusedError("config", f"its sliding window is not converted for {name}")
    width, heads = numbers.whole("hidden_size"), numbers.whole("num_attention_heads")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointRefusedError("config", "rope_scaling in its config.json has no fields")
    return CheckpointConfig(
        architecture=architecture,
        layers=numbers.whole("num_hidden_layers", maximum=1024),
        width=width,
        feed_forward=numbers.whole("intermediate_size"),
        heads=heads,
        kv_heads=numbers.whole("num_key_value_heads", heads),
        head_width=numbers.whole("head_dim", width // heads),
        context=numbers.whole("max_position_embeddings"),
        vocabulary=numbers.whole("vocab_size", maximum=1 << 20),
        rms_epsilon=numbers.real("rms_norm_eps", 1e-6),
        rope_base=_Numbers(rope).real("rope_theta", numbers.real("rope_theta", 10_000.0)),
        rope=_scaling(rope),
        tied=bool(config.get("tie_word_embeddings", False)),
        stored_type=stored_type(config),
    )


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    others = ", ".join(ARCHITECTURES)
    if config.get("auto_map"):
        return f"its architecture {name[:80]} needs code of the checkpoint, which is never run; converted are {others}"
    meant = next(iter(near(name, list(ARCHITECTURES), 1, likeness=0.8)), "")
    hint = f", perhaps {meant} is meant" if meant else ""
    return f"its architecture {name[:80]} is not converted{hint}; converted are {others}"


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind not in _PLAIN_ROPE:
        raise CheckpointRefusedError("config", f"its scaling of positions {kind[:40]!r} is not converted")
    numbers = {
        name: float(value)
        for name, value in rope.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    needed = {
        "default": (),
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings"),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }[kind]
    for name in needed:
        if not 0 < numbers.get(name, 0) < _MAX:
            raise CheckpointRefusedError("config", f"rope_scaling.{name} in its config.json is no positive number")
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise CheckpointRefusedError(
            "config", "rope_scaling.high_freq_factor in its config.json is not above low_freq_factor"
        )
    return RopeScaling(kind, MappingProxyType({name: numbers[name] for name in needed}))


class _Numbers:
    """The numbers of a JSON object, each checked as it is read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def whole(self, name: str, default: int | None = None, *, maximum: int = _MAX) -> int:
        """Return a whole number from 1 to `maximum`; the default if it is missing or null."""
        value = self._fields.get(name)
        if value is None and default is not None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
            raise CheckpointRefusedError("config", f"{name} in its config.json is no whole number from 1 to {maximum}")
        return value

    def real(self, name: str, default: float) -> float:
        """Return a positive number; the default if it is missing or null."""
        value = self._fields.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise CheckpointRefusedError("config", f"{name} in its config.json is no positive number")
        return float(value)
