"""The JSON of `-o json`: the contract's field names in the contract's order, enums without prefix, numbers as numbers.

A field that is zero is there; one that can be unset (a message, an `optional`) is left out if it is unset. A 64-bit number is a number up
to 2**53, where JSON readers with floating point are exact, and a text beyond.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

EXACT = 2**53
_LONG = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def shaped(message: Message) -> dict[str, Any]:
    """A message as plain values."""
    found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    made: dict[str, Any] = _message(found, message.DESCRIPTOR)
    return made


def _message(found: Any, descriptor: Any) -> Any:
    if not isinstance(found, dict):
        return found  # a Timestamp or a Duration is a text already
    return {field.name: _field(found[field.name], field) for field in descriptor.fields if field.name in found}


def _field(value: Any, field: Any) -> Any:
    if isinstance(value, list):
        return [_field(item, field) for item in value]
    if field.enum_type is not None:
        prefix = str(field.enum_type.values[0].name).removesuffix("UNSPECIFIED")
        return value.removeprefix(prefix) if isinstance(value, str) else value
    if field.message_type is not None:
        return value if field.message_type.GetOptions().map_entry else _message(value, field.message_type)
    if field.cpp_type in _LONG and abs(int(value)) <= EXACT:
        return int(value)
    return value
