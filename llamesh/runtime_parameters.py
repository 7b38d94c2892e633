"""Runtime parameters of llama.cpp: their flags, read from the contract, and llamesh's defaults.

Contract service, controller, engine and command all use this module, so that a parameter means the same everywhere. It imports the contract
only.

Invariant: no flag is named here; each is written once, in the options of its field of `RuntimeParameters`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from llamesh.v1 import options_pb2
from llamesh.v1.server_pb2 import RopeScaling, RuntimeParameters, ServerSpec, SpeculativeType

Value = bool | int | float | str
"""A value on llama.cpp's command line; that of an enum is a word."""

DEFAULT_PARALLEL = 4
"""Default number of slots."""
DEFAULT_SLOT_CONTEXT = 4096
"""Default context of a slot in tokens, at most: long enough for a chat, small enough for a laptop."""
DEFAULT_CACHE_RAM = 0
"""Default size of the prompt cache in MiB: none, because no memory estimate counts it."""
DEFAULT_BATCH = 512
"""Default logical batch in tokens, at least. llama.cpp's own is 2048: while it computes a batch, no other answer continues and its counters
do not change. With the same physical batch, prompts are processed as fast."""
DEFAULT_MICRO_BATCH = 512
"""Default physical batch in tokens; the same as llama.cpp's."""
DEFAULT_CHECKPOINTS = 4
"""Default number of copies of a slot's state: those before and at the last question, to which a chat returns. llama.cpp's own 32 would take
several times the memory of the context for a model with a sliding window."""
DEFAULT_DRAFT_TOKENS = 3
"""Default number of tokens that a draft model proposes at once; the same as llama.cpp's."""

_ABOUT = Path(__file__).parent / "v1" / "parameters.json"
_REFUSED = Path(__file__).parent / "v1" / "refused_options.json"
_PLAIN = re.compile(r"[!#-&(-\[\]-~]+")
"""Matches words that need no quotes: printable ASCII without quotes and backslashes."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of RuntimeParameters."""

    field: FieldDescriptor
    flag: str
    """The canonical flag on the command line."""
    aliases: tuple[str, ...]
    """Other flags with the same meaning."""
    implied: Mapping[str, str]
    """Flags that take no value and imply one, with that value."""
    negatives: tuple[str, ...]
    """Flags that turn a boolean off, the canonical one first."""
    embedded: str
    """Attribute path in the embedded library's CommonParams."""
    words: Mapping[str, int]
    """Values of an enum by their words."""
    absent: frozenset[str]
    """Values that mean the same as leaving the parameter out."""
    named: Mapping[str, str]
    """Words that mean a number."""
    model: bool
    """Whether the value is a model of the catalogue, whose file is passed to llama.cpp."""

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    @property
    def negative(self) -> str:
        """Canonical flag that turns a boolean off; empty if there is none."""
        return self.negatives[0] if self.negatives else ""

    @property
    def switch(self) -> bool:
        """Whether the parameter is a boolean, whose flag takes no value."""
        return self.field.type == FieldDescriptor.TYPE_BOOL

    def value(self, value: Value) -> Value:
        """Return a value of the field as llama.cpp reads it: the number of an enum as its word, if it has one."""
        return next((word for word, number in self.words.items() if number == value), value)


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter that is set, for llama.cpp's command line and for the embedded library."""

    name: str
    flag: str
    negative: str
    embedded: str
    value: Value

    def arguments(self) -> list[str]:
        """Return the arguments for the command line; none for a boolean that is off by default and has no flag to turn it off."""
        if self.value is True:
            return [self.flag]
        if self.value is False:
            return [self.negative] if self.negative else []
        return [self.flag, str(self.value)]


@cache
def all_parameters() -> Mapping[str, Parameter]:
    """Return all parameters by name, in the order of the contract."""
    return {field.name: _read(field) for field in RuntimeParameters.DESCRIPTOR.fields}


def settings(message: RuntimeParameters) -> list[Setting]:
    """Return the parameters that are set, in the order of the contract."""
    found = ((all_parameters()[field.name], value) for field, value in message.ListFields())
    return [Setting(item.name, item.flag, item.negative, item.embedded, item.value(value)) for item, value in found]


@cache
def about() -> Mapping[str, str]:
    """Return the description of each parameter, with its default, by name."""
    return dict(json.loads(_ABOUT.read_text(encoding="utf-8")))


@cache
def refused_options() -> Mapping[str, str]:
    """Return the reason why each other option of llama-server is refused, by each of its spellings."""
    return dict(json.loads(_REFUSED.read_text(encoding="utf-8")))


def models(message: RuntimeParameters) -> dict[str, str]:
    """Return the models that a server needs besides the one it serves: model_uuid by parameter."""
    return {field.name: value for field, value in message.ListFields() if all_parameters()[field.name].model}


def needed_models(spec: ServerSpec) -> tuple[str, ...]:
    """Return the models that a server needs: the served model first, then those in its parameters."""
    return spec.model_uuid, *models(spec.parameters).values()


def adapters(message: RuntimeParameters) -> dict[str, float]:
    """Return the scale of each LoRA adapter that a server uses, by its name."""
    found = (item.partition(":") for item in message.lora.split(",") if item)
    return {name: float(scale or 1) for name, _, scale in found}


def loads_projector(message: RuntimeParameters) -> bool:
    """Return whether an engine loads the projector of its model, if the model has one."""
    return message.mmproj_auto or not message.HasField("mmproj_auto")


def flags(message: RuntimeParameters) -> str:
    """Return the canonical form: long flags in the order of the contract, separated by one space."""
    return " ".join(word for setting in settings(message) for word in _written(setting))


def joined(words: Iterable[str]) -> str:
    """Join words of a command line to a text for `runtime_params`; words with blanks, quotes and the like are quoted."""
    return " ".join(word if _PLAIN.fullmatch(word) else _quoted(word) for word in words)


def _written(setting: Setting) -> list[str]:
    flag, *values = setting.arguments() or [""]
    looks_like_a_flag = isinstance(setting.value, str) and setting.value.startswith("-")
    return [flag, *(_quoted(value) if looks_like_a_flag else joined([value]) for value in values)] if flag else []


def _quoted(word: str) -> str:
    if "'" not in word:
        return f"'{word}'"
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def batch_size(message: RuntimeParameters) -> int:
    """Return the logical batch in tokens: the one that is set, else at least one physical batch."""
    return message.batch_size or max(DEFAULT_BATCH, message.ubatch_size)


def with_defaults(message: RuntimeParameters, model_context: int) -> RuntimeParameters:
    """Return a copy with llamesh's defaults, which keep an engine inside its estimated memory.

    `model_context` is the context that the model was trained for, in tokens; 0 if unknown. llama.cpp divides `ctx_size` by the number of
    slots, so the default is multiplied by it: each request can use `DEFAULT_SLOT_CONTEXT` tokens independently of the others. (A unified
    cache would be smaller, but exhausting it fails every request in flight.)
    """
    filled = RuntimeParameters()
    filled.CopyFrom(message)
    if not filled.HasField("parallel"):
        filled.parallel = DEFAULT_PARALLEL
    if not filled.HasField("ctx_size"):
        slot = min(model_context or DEFAULT_SLOT_CONTEXT, DEFAULT_SLOT_CONTEXT)
        filled.ctx_size = slot if filled.kv_unified else slot * filled.parallel
    filled.batch_size = batch_size(filled)
    if not filled.HasField("cache_ram"):
        filled.cache_ram = DEFAULT_CACHE_RAM
    if not filled.HasField("ctx_checkpoints"):
        filled.ctx_checkpoints = DEFAULT_CHECKPOINTS
    if filled.HasField("model_draft") and not filled.HasField("spec_type"):
        # Without a type, llama.cpp loads the draft model and does not use it.
        filled.spec_type = SpeculativeType.SPECULATIVE_TYPE_DRAFT_SIMPLE
    return filled


def slot_context(message: RuntimeParameters, model_context: int) -> int:
    """Return the maximum number of tokens of one request, including its answer. `model_context` is as in `with_defaults`.

    llama.cpp gives a slot its share of the context, but no more than the model was trained for.
    """
    share = slot_share(message, model_context)
    return min(share, trained_context(message, model_context) or share)


def slot_share(message: RuntimeParameters, model_context: int) -> int:
    """Return the tokens of context that are reserved for one slot."""
    filled = with_defaults(message, model_context)
    return filled.ctx_size if filled.kv_unified else filled.ctx_size // filled.parallel


def trained_context(message: RuntimeParameters, model_context: int) -> int:
    """Return the maximum number of tokens that llama.cpp gives a slot for a model trained for `model_context`; 0 if unknown.

    Only YaRN raises it. Without `rope_scaling`, the model's file decides, so the larger number is returned.
    """
    scale = message.rope_scale or (1 / message.rope_freq_scale if message.rope_freq_scale else 1.0)
    stretched = int((message.yarn_orig_ctx or model_context) * scale)
    if message.rope_scaling == RopeScaling.ROPE_SCALING_YARN:
        return stretched if scale != 1.0 else model_context
    if message.rope_scaling == RopeScaling.ROPE_SCALING_UNSPECIFIED and model_context:
        return max(stretched, model_context)
    return model_context


def _read(field: FieldDescriptor) -> Parameter:
    option = field.GetOptions().Extensions[options_pb2.llama]
    values = field.enum_type.values if field.enum_type else ()
    spelt = {value.GetOptions().Extensions[options_pb2.llama_value]: value.number for value in values}
    return Parameter(
        field=field,
        flag=option.flag,
        aliases=tuple(option.aliases),
        implied={item.flag: item.value for item in option.implied},
        negatives=(option.negative, *option.negative_aliases) if option.negative else (),
        embedded=option.embedded,
        words={word: number for word, number in spelt.items() if word},
        absent=frozenset(option.absent),
        named={item.word: item.value for item in option.named},
        model=option.model,
    )
