"""Typed runtime parameters as llama.cpp takes them, read from the contract's own options.

Invariant: no flag or attribute of llama.cpp is named here; each stands once, on its field of `RuntimeParameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from engine.failure import EngineError, Reason
from llamesh.v1 import options_pb2
from llamesh.v1.server_pb2 import RuntimeParameters

DEFAULT_PARALLEL = 4
"""Slots where none are asked for."""
DEFAULT_SLOT_CONTEXT = 4096
"""Most tokens of context for each slot where no context is asked for: long enough for a chat, small enough for a laptop."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter that is set, in both of llama.cpp's languages."""

    flag: str
    """On the command line."""
    negative: str
    """The flag that says no to a boolean; empty where there is none."""
    embedded: str
    """Attribute path in the embedded library's CommonParams."""
    value: bool | int | float | str
    """An enum's value as it is written on the command line."""


def decode(document: Mapping[str, Any]) -> RuntimeParameters:
    """Type ProtoJSON. Raises EngineError(BAD_SPEC) on an unknown field or a wrong type; bounds are the contract service's."""
    try:
        return json_format.ParseDict(dict(document), RuntimeParameters())
    except json_format.ParseError as error:
        raise EngineError(Reason.BAD_SPEC, f"parameters: {error}") from error


def with_defaults(parameters: RuntimeParameters, model_context: int, threads: int) -> RuntimeParameters:
    """The parameters with llamesh's own defaults filled in, which keep an engine inside its share of memory and processor.

    `model_context` is what the model was trained for, 0 where not known; for `threads` see `engine.cores`. llama.cpp shares
    `ctx_size` among the slots, so the default is multiplied by them: each request may then use `DEFAULT_SLOT_CONTEXT` tokens
    whatever the others do. (One unified cache would be smaller, but running out of it fails every request in flight.)
    """
    filled = RuntimeParameters()
    filled.CopyFrom(parameters)
    if not filled.HasField("parallel"):
        filled.parallel = DEFAULT_PARALLEL
    if not filled.HasField("ctx_size"):
        slot = min(model_context or DEFAULT_SLOT_CONTEXT, DEFAULT_SLOT_CONTEXT)
        filled.ctx_size = slot if filled.kv_unified else slot * filled.parallel
    if not filled.HasField("cache_ram"):
        filled.cache_ram = 0
    if not filled.HasField("threads"):
        filled.threads = threads
    return filled


def listed(parameters: RuntimeParameters) -> list[Parameter]:
    """What is set, in the order of the contract."""
    found = []
    for descriptor, value in parameters.ListFields():
        option = descriptor.GetOptions().Extensions[options_pb2.llama]
        found.append(Parameter(option.flag, option.negative, option.embedded, _value(descriptor, value)))
    return found


def _value(descriptor: FieldDescriptor, value: Any) -> bool | int | float | str:
    if descriptor.enum_type is None:
        return value  # type: ignore[no-any-return]  # scalars of a message are one of these
    chosen = descriptor.enum_type.values_by_number[value]
    return chosen.GetOptions().Extensions[options_pb2.llama_value]
