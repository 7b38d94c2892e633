"""Decodes the spec of a document into the contract's message, field by field, so that each mistake has a line.

Fields are written in snake case or camel case, as protobuf's JSON takes both; enums with or without their prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from llamesh.durations import seconds
from llamesh.enum_words import enum_words, full_name
from llamesh.nearest import nearest

DURATION = "google.protobuf.Duration"
_Node = Any


@dataclass(frozen=True, slots=True)
class SpecError:
    """One mistake in a spec."""

    line: int
    path: str
    words: str


def decode(node: _Node, message: Message, path: str, lines: dict[str, int], errors: list[SpecError]) -> None:
    """Fill a message from a YAML node. Mistakes go to `errors`, the line of each field to `lines`."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        errors.append(SpecError(line_of(node), path, "must be a mapping of fields to values"))
        return
    descriptor = message.DESCRIPTOR
    known: dict[str, Any] = {**{field.json_name: field for field in descriptor.fields}, **descriptor.fields_by_name}
    seen: set[str] = set()
    for key, value in node.value:
        word = str(key.value)
        field = known.get(word)
        if field is None:
            meant = nearest(word, known, 0.5)
            hint = f"; did you mean {meant}?" if meant else f"; known: {', '.join(descriptor.fields_by_name)}"
            errors.append(SpecError(line_of(key), f"{path}.{short(word)}", f"unknown field{hint}"))
            continue
        at = f"{path}.{field.name}"
        lines[at] = line_of(key)
        if field.name in seen:
            errors.append(SpecError(line_of(key), at, "is given twice"))
            continue
        seen.add(field.name)
        _decode_field(value, message, field, at, lines, errors)


def _decode_field(
    node: _Node,
    message: Message,
    field: FieldDescriptor,
    at: str,
    lines: dict[str, int],
    errors: list[SpecError],
) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _decode_map(node, message, field, at, errors)
        return
    if field.message_type is not None and field.message_type.full_name != DURATION:
        _decode_messages(node, message, field, at, lines, errors)
        return
    try:
        value = _plain(node)
        json_format.ParseDict({field.name: _spelled(field, value)}, message)
        if problem := _out_of_bounds(field, value):
            errors.append(SpecError(line_of(node), at, problem))
    except (json_format.ParseError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError):
        errors.append(SpecError(line_of(node), at, f"must be {_wanted(field)}"))


def _decode_messages(
    node: _Node, message: Message, field: FieldDescriptor, at: str, lines: dict[str, int], errors: list[SpecError]
) -> None:
    """Fill a field that is a message, or a list of messages."""
    child = getattr(message, field.name)
    if not field.is_repeated:
        child.SetInParent()
        decode(node, child, at, lines, errors)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            decode(item, child.add(), f"{at}[{number}]", lines, errors)
    else:
        errors.append(SpecError(line_of(node), at, "must be a list"))


def _decode_map(node: _Node, message: Message, field: FieldDescriptor, at: str, errors: list[SpecError]) -> None:
    """Fill a map of texts."""
    if not isinstance(node, yaml.MappingNode):
        errors.append(SpecError(line_of(node), at, "must be a mapping of names to texts"))
        return
    rules = field.GetOptions().Extensions[validate_pb2.field].map
    for key, value in node.value:
        name, text = _plain(key), _plain(value)
        if not isinstance(name, str) or not isinstance(text, str):
            errors.append(SpecError(line_of(key), f"{at}.{short(str(name))}", "must be a text in quotes"))
            continue
        for rule, word in ((rules.keys.string, name), (rules.values.string, text)):
            if not re.search(rule.pattern, word):
                errors.append(SpecError(line_of(key), at, f"{short(word)!r} does not match {rule.pattern}"))
        getattr(message, field.name)[name] = text


def _plain(node: _Node) -> Any:
    """Return the value as YAML reads it."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    loader = yaml.SafeLoader("")
    return loader.construct_object(node)


def _spelled(field: FieldDescriptor, value: Any) -> Any:
    """Return the value as protobuf's JSON writes it."""
    if field.enum_type is not None:
        return full_name(field, ("on" if value else "off") if isinstance(value, bool) else str(value))
    if field.message_type is not None and field.message_type.full_name == DURATION and isinstance(value, int | str):
        return f"{seconds(str(value)):.9f}s"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not isinstance(value, str | list):
        raise TypeError
    return value


def _out_of_bounds(field: FieldDescriptor, value: Any) -> str:
    """Return the contract's rule that a number or a text breaks. The mesh checks all rules again."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    chosen = rules.WhichOneof("type")
    if chosen in {"uint32", "int32", "double"} and isinstance(value, int | float):
        limits = {key.name: limit for key, limit in getattr(rules, chosen).ListFields()}
        if value < limits.get("gte", value) or value > limits.get("lte", value):
            return f"must be between {limits.get('gte', 0):g} and {limits['lte']:.10g}, not {value:g}"
    if chosen == "string" and isinstance(value, str) and value:
        if rules.string.pattern and not re.search(rules.string.pattern, value):
            return f"{short(value)!r} does not match {rules.string.pattern}"
        if rules.string.max_len and len(value) > rules.string.max_len:
            return f"must have at most {rules.string.max_len} characters"
    return ""


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return "one of " + ", ".join(enum_words(field))
    if field.message_type is not None:
        return 'a length of time, for instance "600s" or "10m"'
    kinds = {
        FieldDescriptor.CPPTYPE_BOOL: "true or false",
        FieldDescriptor.CPPTYPE_STRING: "a text in quotes",
        FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    }
    words = kinds.get(field.cpp_type, "a whole number that is not negative")
    return f"a list, each {words}" if isinstance(field.default_value, list) else words


def short(word: str) -> str:
    """Return a word of a file as a message shows it: at most 80 characters."""
    return word if len(word) <= 80 else f"{word[:77]}..."


def line_of(node: _Node) -> int:
    """Return the line of a YAML node, counted from 1."""
    return int(node.start_mark.line) + 1
