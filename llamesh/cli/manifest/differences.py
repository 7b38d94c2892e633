"""The fields in which two specs of one kind differ, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamesh.cli.placement import options_of


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs."""

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}"


def differences(before: Any, after: Any, path: str) -> Iterator[FieldChange]:
    """Yield each field that differs between two messages of one type."""
    for field in before.DESCRIPTOR.fields:
        at = f"{path}.{field.name}"
        one, two = getattr(before, field.name), getattr(after, field.name)
        if one == two and (not field.has_presence or before.HasField(field.name) == after.HasField(field.name)):
            continue
        if field.message_type is not None and field.message_type.full_name == "llamesh.v1.RuntimeParameters":
            yield from differences(one, two, at)
        else:
            yield FieldChange(at, _shown(before, field), _shown(after, field))


def _shown(message: Any, field: Any) -> str:
    value = getattr(message, field.name)
    if field.has_presence and not message.HasField(field.name):
        return "default"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
        return str(value.ToJsonString())
    if field.message_type is not None and field.message_type.full_name == "llamesh.v1.Placement":
        return options_of(value)
    if not isinstance(value, str | int | float | bool):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"
