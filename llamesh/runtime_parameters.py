"""Runtime parameters as their contract has them: how each is written for llama.cpp, and what llamesh assumes where it is not set.

The service that checks a server, the controller that shows it, the engine that starts it and the command that asks for it
must mean the same, so all of them read it here; nothing but the contract is imported.

Invariant: no flag is named here; each stands once, in the options of its field of `RuntimeParameters`.
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
from llamesh.v1.server_pb2 import RopeScaling, RuntimeParameters, SpeculativeType

Value = bool | int | float | str
"""A value as llama.cpp's command line has it; an enum's is a word."""

DEFAULT_PARALLEL = 4
"""Slots where none are asked for."""
DEFAULT_SLOT_CONTEXT = 4096
"""Most tokens of context for each slot where no context is asked for: long enough for a chat, small enough for a laptop."""
DEFAULT_CACHE_RAM = 0
"""MiB of prompts kept where it is not said: none, as they would count for nobody."""
DEFAULT_BATCH = 512
"""Least logical batch where none is asked for, in tokens. llama.cpp's own is 2048: while it computes one, nobody else's answer goes on
and its counters stand still. With the physical batch as it is, prompts are read as fast."""
DEFAULT_MICRO_BATCH = 512
"""Physical batch where none is asked for, in tokens; llama.cpp's own."""
DEFAULT_CHECKPOINTS = 4
"""Copies of a slot's state where it is not said: those before and at the last question, to which a chat returns. llama.cpp's own 32 would
be several times the context itself for a model with a sliding window."""
DEFAULT_DRAFT_TOKENS = 3
"""Tokens that a draft model guesses at once where it is not said; llama.cpp's own."""

_ABOUT = Path(__file__).parent / "v1" / "parameters.json"
_REFUSED = Path(__file__).parent / "v1" / "refused_options.json"
_PLAIN = re.compile(r"[!#-&(-\[\]-~]+")
"""What needs no quotes: printable ASCII without quotes and backslashes."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of RuntimeParameters."""

    field: FieldDescriptor
    flag: str
    """The canonical flag on the command line."""
    aliases: tuple[str, ...]
    """Other flags that mean the same."""
    implied: Mapping[str, str]
    """Flags that take no value and imply one."""
    negatives: tuple[str, ...]
    """The flags that say no to a boolean, the canonical one first; empty where there is none."""
    embedded: str
    """Attribute path in the embedded library's CommonParams."""
    words: Mapping[str, int]
    """Of an enum: its values as they are written."""
    absent: frozenset[str]
    """Values that mean the same as leaving it out."""
    named: Mapping[str, str]
    """Words that stand for a number."""
    model: bool
    """Whether the value is a model of the catalogue, whose file llama.cpp is given."""

    @property
    def name(self) -> str:
        """The field's name."""
        return self.field.name

    @property
    def negative(self) -> str:
        """The canonical flag that says no to a boolean; empty where there is none."""
        return self.negatives[0] if self.negatives else ""

    @property
    def switch(self) -> bool:
        """Whether it is a boolean: its flag takes no value."""
        return self.field.type == FieldDescriptor.TYPE_BOOL

    def value(self, value: Value) -> Value:
        """What the field holds, an enum's number as its word; a number that has no word stays as it is."""
        return next((word for word, number in self.words.items() if number == value), value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter that is set, in both of llama.cpp's languages."""

    name: str
    flag: str
    negative: str
    embedded: str
    value: Value

    def arguments(self) -> list[str]:
        """On the command line. A boolean that is off and has no flag to say so is llama.cpp's default and left out."""
        if self.value is True:
            return [self.flag]
        if self.value is False:
            return [self.negative] if self.negative else []
        return [self.flag, str(self.value)]


@cache
def all_parameters() -> Mapping[str, Parameter]:
    """All parameters by name, in the contract's order."""
    return {field.name: _read(field) for field in RuntimeParameters.DESCRIPTOR.fields}


def settings(message: RuntimeParameters) -> list[Setting]:
    """What is set, in the contract's order."""
    found = ((all_parameters()[field.name], value) for field, value in message.ListFields())
    return [Setting(item.name, item.flag, item.negative, item.embedded, item.value(value)) for item, value in found]


@cache
def about() -> Mapping[str, str]:
    """What each parameter means and its default, by name."""
    return dict(json.loads(_ABOUT.read_text()))


@cache
def refused_options() -> Mapping[str, str]:
    """Why each other option of llama-server may not be given, by each of its spellings."""
    return dict(json.loads(_REFUSED.read_text()))


def models(message: RuntimeParameters) -> dict[str, str]:
    """The models of the catalogue that are needed beside the one that is served: parameter and model_uuid."""
    return {field.name: value for field, value in message.ListFields() if all_parameters()[field.name].model}


def flags(message: RuntimeParameters) -> str:
    """The canonical form: long flags in the contract's order, separated by one space."""
    return " ".join(word for setting in settings(message) for word in _written(setting))


def joined(words: Iterable[str]) -> str:
    """Words of a command line as one text that `runtime_params` may be: what has blanks, quotes or the like stands in quotes."""
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
    """The logical batch, in tokens: what is asked for, else enough for one physical batch."""
    return message.batch_size or max(DEFAULT_BATCH, message.ubatch_size)


def with_defaults(message: RuntimeParameters, model_context: int) -> RuntimeParameters:
    """A copy with llamesh's own defaults filled in, which keep an engine inside its share of memory.

    `model_context` is what the model was trained for, in tokens, 0 where not known. llama.cpp shares `ctx_size` among the
    slots, so the default is multiplied by them: each request may then use `DEFAULT_SLOT_CONTEXT` tokens whatever the others
    do. (One unified cache would be smaller, but running out of it fails every request in flight.)
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
        # llama.cpp would load the model and leave it unused.
        filled.spec_type = SpeculativeType.SPECULATIVE_TYPE_DRAFT_SIMPLE
    return filled


def slot_context(message: RuntimeParameters, model_context: int) -> int:
    """Tokens that one request may use, its answer included. `model_context` is as for `with_defaults`.

    llama.cpp gives a slot its share of the context, but no more than what the model was trained for.
    """
    share = slot_share(message, model_context)
    return min(share, trained_context(message, model_context) or share)


def slot_share(message: RuntimeParameters, model_context: int) -> int:
    """Tokens of context that are set aside for one request."""
    filled = with_defaults(message, model_context)
    return filled.ctx_size if filled.kv_unified else filled.ctx_size // filled.parallel


def trained_context(message: RuntimeParameters, model_context: int) -> int:
    """Most tokens that llama.cpp lets a slot have of a model trained for `model_context`; 0 where that is not known.

    Only YaRN lifts it. Where the scaling is not named the model's file decides, so that the larger number holds.
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
