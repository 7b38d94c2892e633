"""Reads `config.json` of a checkpoint: the architecture of the model and its numbers. No I/O.

A checkpoint is a model in the format of Hugging Face: `config.json`, a tokenizer, and the weights in safetensors files.
Invariant: the file is read without trust. No code that it names is run, and every number that it gives is checked for its range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "llama",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
    }
)
"""Class of the model in `architectures`, and the architecture as llama.cpp names it."""
CODE_FILES = ("config.json", "tokenizer_config.json")
"""The files in which a checkpoint names code of its own."""
OTHER_CONVERTER = "for others set LLAMA_CONVERT_BIN to a converter, such as llama.cpp's, and start the mesh again"
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
WIDTHS: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
"""Bytes of a weight in the types that are converted."""
_MAX = (1 << 31) - 1
"""llama.cpp keeps the whole numbers of a GGUF file in 32 bits, and some of them with a sign."""
MAX_HEAD_WIDTH = 1024
"""Maximum length of a head. Real models have up to 256."""
MAX_HEADS = 1024
"""Maximum number of heads, each of which llama.cpp computes with memory of its own. Real models have up to 128."""
MAX_ROWS = 1 << 18
"""Maximum number of rows of the heads of one attention together. The largest real models have 2^14."""
MAX_VOCABULARY = 1 << 19
"""Maximum number of tokens, each of which is held in memory. The largest real vocabularies have 2^18."""
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "extrapolation_factor": 1}
"""What llama.cpp takes for the other numbers of YaRN. A checkpoint with others is refused."""
_YARN_OTHERS = ("attention_factor", "attn_factor", "mscale", "mscale_all_dim")
_TRAINED_CONTEXT = "original_max_position_embeddings"
_ROPE_NUMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "yarn": ("factor", _TRAINED_CONTEXT),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", _TRAINED_CONTEXT),
    }
)
"""The numbers that each scaling of positions needs."""
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
    """What a checkpoint says of its model. Lengths are in numbers."""

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


def shown(value: object, longest: int = 80) -> str:
    """Return a value of a checkpoint as a message may show it: short, and without control characters. Lists and objects are only named."""
    if isinstance(value, list | Mapping):
        return "a list" if isinstance(value, list) else "an object"
    return "".join(filter(str.isprintable, str(value)[:longest]))


def refuse_unusable(config: Any) -> None:
    """Raise CheckpointRefusedError if no converter could convert a checkpoint: it is quantised already, or no model."""
    if (
        not isinstance(config, Mapping)
        or not isinstance(config.get("architectures"), list)
        or not config["architectures"]
        or not isinstance(config["architectures"][0], str)
    ):
        raise CheckpointRefusedError(
            "config", "its config.json names no architecture: it is not that of a language model"
        )
    if config.get("quantization_config"):
        raise CheckpointRefusedError(
            "quantised", "its weights are quantised already: take the checkpoint that they were made from"
        )


def uses_own_converter(program: str, documents: Iterable[Any]) -> bool:
    """Return whether llamesh's own converter takes a checkpoint: always if no other `program` is set, and if the checkpoint names code.

    `documents` are its parsed CODE_FILES. Other converters would run the code.
    """
    return not program or any(isinstance(each, Mapping) and bool(each.get("auto_map")) for each in documents)


def stored_type(config: Mapping[str, Any]) -> str:
    """Return the type of most weights: BF16, F16 or F32. F16 if the checkpoint does not say."""
    named = config.get("dtype") or config.get("torch_dtype")
    return _STORED.get(named, "F16") if isinstance(named, str) else "F16"


def whole_number(config: Mapping[str, Any], name: str, *, maximum: int = _MAX) -> int:
    """Return a number of a parsed config.json of any architecture; 0 if it is missing, or no whole number from 1 to `maximum`."""
    try:
        return _Numbers(config).whole(name, maximum=maximum)
    except CheckpointRefusedError:
        return 0


def read_config(config: Any) -> CheckpointConfig:
    """Read the parsed config.json. Raises CheckpointRefusedError."""
    refuse_unusable(config)
    name = config["architectures"][0]
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise CheckpointRefusedError("code" if config.get("auto_map") else "architecture", _unknown(name, config))
    numbers = _Numbers(config)
    if config.get("hidden_act", "silu") not in _ACTIVATIONS:
        raise CheckpointRefusedError("config", f"its activation {shown(config['hidden_act'])} is not that of {name}")
    for field, value in (("use_sliding_window", False), ("is_causal", True), ("partial_rotary_factor", 1)):
        if config.get(field) not in (None, value):
            raise CheckpointRefusedError(
                "config", f"{field} {shown(config[field])} in its config.json is not converted"
            )
    width, heads = numbers.whole("hidden_size"), numbers.whole("num_attention_heads", maximum=MAX_HEADS)
    head_width = numbers.whole("head_dim", width // heads, maximum=MAX_HEAD_WIDTH)
    if head_width % 2:
        raise CheckpointRefusedError("config", f"heads of {head_width} numbers cannot be rotated: head_dim is odd")
    kv_heads = numbers.whole("num_key_value_heads", heads, maximum=MAX_HEADS)
    if max(heads, kv_heads) * head_width > MAX_ROWS:
        raise CheckpointRefusedError("config", f"its heads have more than {MAX_ROWS} rows together")
    rope = _rope(config)
    scaling = _scaling(rope)
    if scaling.kind == "llama3" and architecture != "llama":
        raise CheckpointRefusedError("config", f"the scaling of positions llama3 is not one of {name}")
    return CheckpointConfig(
        architecture=architecture,
        layers=numbers.whole("num_hidden_layers", maximum=1024),
        width=width,
        feed_forward=numbers.whole("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        context=numbers.whole("max_position_embeddings"),
        vocabulary=numbers.whole("vocab_size", maximum=MAX_VOCABULARY),
        rms_epsilon=numbers.real("rms_norm_eps", 1e-6),
        rope_base=_Numbers(rope).real("rope_theta", numbers.real("rope_theta", 10_000.0)),
        rope=scaling,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    others = ", ".join(ARCHITECTURES)
    if config.get("auto_map"):
        return (
            f"its architecture {shown(name)} needs code of the checkpoint, which is never run; converted are {others}"
        )
    return f"its architecture {shown(name)} is not converted; converted are {others}; {OTHER_CONVERTER}"


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields that say how positions are rotated, which newer checkpoints have for each kind of layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping):
        rope = rope.get("full_attention", rope)
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise CheckpointRefusedError("config", "rope_scaling in its config.json has another form than is converted")
    return rope


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in _ROPE_NUMBERS:
        raise CheckpointRefusedError("config", f"its scaling of positions {shown(kind)} is not converted")
    given = _Numbers(rope, "rope_scaling.")
    numbers = {
        name: given.whole(name) if name == _TRAINED_CONTEXT else given.real(name) for name in _ROPE_NUMBERS[kind]
    }
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise CheckpointRefusedError(
            "config", "rope_scaling.high_freq_factor in its config.json is not above low_freq_factor"
        )
    if kind == "yarn":
        for name in (*_YARN_DEFAULTS, *_YARN_OTHERS):
            if rope.get(name) not in (None, _YARN_DEFAULTS.get(name)):
                raise CheckpointRefusedError("config", f"rope_scaling.{name} in its config.json is not converted")
    return RopeScaling(kind, MappingProxyType(numbers))


class _Numbers:
    """The numbers of a JSON object, each checked as it is read."""

    def __init__(self, fields: Mapping[str, Any], where: str = "") -> None:
        self._fields = fields
        self._where = where

    def whole(self, name: str, default: int | None = None, *, maximum: int = _MAX) -> int:
        """Return a whole number from 1 to `maximum`; the default if it is missing or null."""
        value = self._fields.get(name)
        if value is None and default is not None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
            raise CheckpointRefusedError(
                "config", f"{self._where}{name} in its config.json is no whole number from 1 to {maximum}"
            )
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Return a positive number; the default if it is missing or null."""
        value = self._fields.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise CheckpointRefusedError("config", f"{self._where}{name} in its config.json is no positive number")
        return float(value)
