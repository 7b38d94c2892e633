"""Validates a request against the rules of its contract.

Invariant: the rules bound the cost of a validation. Items are counted before the first is checked, and the validation of a large request
ends at the first violation, because reporting each further one costs as much as a whole small request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import protovalidate
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.kit.violations import described

LARGE = 4096
"""Size in bytes above which only the first violation of a request is reported."""


def validate(request: Message) -> None:
    """Validate a request; INVALID_FIELD names every invalid field, or the first one of a large request."""
    too_many = next(_too_many(request, ""), None)
    if too_many:
        raise _invalid((too_many,))
    try:
        protovalidate.validate(request, fail_fast=request.ByteSize() > LARGE)
    except protovalidate.ValidationError as error:
        violations = (FieldViolation(_path(each.proto.field), described(each)) for each in error.violations)
        raise _invalid(tuple(violations)) from error


def _invalid(violations: tuple[FieldViolation, ...]) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_INVALID_FIELD,
        "; ".join(f"{item.field}: {item.description}" for item in violations),
        {"fields": ",".join(item.field for item in violations)},
        violations,
    )


def _too_many(message: Message, prefix: str) -> Iterator[FieldViolation]:
    """Yield lists and maps that are longer than their rules allow."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.is_repeated:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            most = rules.map.max_pairs or rules.repeated.max_items
            if most and len(value) > most:
                yield FieldViolation(path, f"must have at most {most} items, not {len(value)}")
            elif field.message_type and not field.message_type.GetOptions().map_entry:
                for index, item in enumerate(value):
                    yield from _too_many(item, f"{path}[{index}].")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _too_many(value, f"{path}.")


def _path(field: Any) -> str:
    """Return the path of a field, for instance "changes.parameters.ctx_size" or "kinds[1]"."""
    parts = (
        f"{element.field_name}[{element.subscript.value}]" if element.subscript else str(element.field_name)
        for element in (field.elements if field else ())
    )
    return ".".join(parts) or "(message)"
