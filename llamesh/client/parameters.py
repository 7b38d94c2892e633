"""Runtime parameters by their names and llama.cpp's words, read from the contract: `typed({"ctx_size": 2048, "cache_type_k": "q8_0"})`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.v1 import options_pb2, server_pb2

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of RuntimeParameters."""

    name: str
    flags: tuple[str, ...]
    """The canonical flag, then its other spellings."""
    negative: str
    """The flag that says no to a boolean; empty where there is none."""
    kind: type[bool] | type[int] | type[float] | type[str]
    words: Mapping[str, int]
    """Of an enum: its values as llama.cpp's command line has them."""
    bounds: str
    """For people; empty where there are none."""


@cache
def parameters() -> Mapping[str, Parameter]:
    """All parameters by name, in the contract's order."""
    return {field.name: _read(field) for field in server_pb2.RuntimeParameters.DESCRIPTOR.fields}


def typed(values: Mapping[str, Value | None]) -> server_pb2.RuntimeParameters:
    """The message for the values that are not None. ValueError naming a parameter that there is not, or a word it does not know."""
    message = server_pb2.RuntimeParameters()
    for name, value in values.items():
        known = parameters().get(name)
        if known is None:
            raise ValueError(f"{name} is not a runtime parameter; those are: {', '.join(parameters())}")
        if value is None:
            continue
        if known.words and value not in known.words:
            raise ValueError(f"{name} is one of {', '.join(known.words)}, not {value!r}")
        try:
            setattr(message, name, known.words[str(value)] if known.words else value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
    return message


def _read(field: FieldDescriptor) -> Parameter:
    flag = field.GetOptions().Extensions[options_pb2.llama]
    kinds: dict[int, type[bool] | type[int] | type[float] | type[str]] = {
        FieldDescriptor.CPPTYPE_BOOL: bool,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
        FieldDescriptor.CPPTYPE_STRING: str,
        FieldDescriptor.CPPTYPE_ENUM: str,
    }
    words = {
        value.GetOptions().Extensions[options_pb2.llama_value]: value.number
        for value in (field.enum_type.values if field.enum_type else ())
        if value.number
    }
    return Parameter(
        name=field.name,
        flags=(flag.flag, *flag.aliases),
        negative=flag.negative,
        kind=kinds.get(field.cpp_type, int),
        words=words,
        bounds=_bounds(field),
    )


def _bounds(field: FieldDescriptor) -> str:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    chosen = rules.WhichOneof("type")
    if chosen not in {"uint32", "int32", "double"}:
        return ""
    bounds = {key.name: value for key, value in getattr(rules, chosen).ListFields()}
    low = bounds.get("gte", bounds.get("gt", 0 if chosen == "uint32" else None))
    high = bounds.get("lte", bounds.get("lt"))
    return f"{low:g} to {high:.10g}" if low is not None and high is not None else ""
