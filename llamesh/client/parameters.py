"""Runtime parameters by their names and llama.cpp's words, read from the contract: `typed({"ctx_size": 2048, "cache_type_k": "q8_0"})`."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.runtime_parameters import Parameter, Value, all_parameters
from llamesh.v1 import server_pb2

Parameters = server_pb2.RuntimeParameters | Mapping[str, Value | None]
"""Runtime parameters in one value: the contract's message, or values by name."""


def combined(given: Parameters | None, named: Mapping[str, Value | None]) -> server_pb2.RuntimeParameters | None:
    """One message for those given in one value and those given by name; None without any. ValueError if one is given twice."""
    if not given and not named:
        return None
    message = server_pb2.RuntimeParameters()
    message.CopyFrom(given if isinstance(given, server_pb2.RuntimeParameters) else typed(given or {}))
    other = typed(named)
    there = {field.name for field, _ in message.ListFields()}
    if twice := [field.name for field, _ in other.ListFields() if field.name in there]:
        raise ValueError(f"{', '.join(twice)} is given twice: in `parameters` and by its name")
    message.MergeFrom(other)
    return message


def typed(values: Mapping[str, Value | None]) -> server_pb2.RuntimeParameters:
    """The message for the values that are not None. ValueError names an unknown parameter or an unknown word."""
    message = server_pb2.RuntimeParameters()
    for name, value in values.items():
        known = all_parameters().get(name)
        if known is None:
            raise ValueError(f"{name} is not a runtime parameter; those are: {', '.join(all_parameters())}")
        if value is None or str(value) in known.absent:
            continue
        if str(value) in known.named:
            value = kind(known)(known.named[str(value)])
        if known.words and value not in known.words:
            raise ValueError(f"{name} is one of {', '.join(known.words)}, not {value!r}")
        try:
            setattr(message, name, known.words[str(value)] if known.words else value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
    return message


def words(parameter: Parameter) -> tuple[str, ...]:
    """Return the words that may replace a number: each stands for a number, or for the default."""
    return (*parameter.named, *sorted(word for word in parameter.absent if not word.lstrip("-").isdecimal()))


def kind(parameter: Parameter) -> type[bool] | type[int] | type[float] | type[str]:
    """Return the Python type of a parameter's values; str for an enum, whose values are words."""
    kinds: dict[int, type[bool] | type[float] | type[str]] = {
        FieldDescriptor.CPPTYPE_BOOL: bool,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
        FieldDescriptor.CPPTYPE_STRING: str,
        FieldDescriptor.CPPTYPE_ENUM: str,
    }
    return kinds.get(parameter.field.cpp_type, int)


def bounds(parameter: Parameter) -> str:
    """Describe the bounds of a number for people; empty if it has none."""
    rules = parameter.field.GetOptions().Extensions[validate_pb2.field]
    chosen = rules.WhichOneof("type")
    if chosen not in {"uint32", "int32", "double"}:
        return ""
    limits = {key.name: value for key, value in getattr(rules, chosen).ListFields()}
    low = limits.get("gte", limits.get("gt", 0 if chosen == "uint32" else None))
    high = limits.get("lte", limits.get("lt"))
    if low is None or high is None:
        return ""
    return f"above {low:g}, at most {high:.10g}" if "gt" in limits else f"{low:g} to {high:.10g}"


def choices(parameter: Parameter) -> tuple[str, ...]:
    """Return the allowed words of a parameter; empty if every value of its type is allowed."""
    rules = parameter.field.GetOptions().Extensions[validate_pb2.field]
    return tuple(parameter.words) or tuple(getattr(rules.string, "in"))
