"""Bodies that have exactly so much of what a limit counts and are harmless otherwise, made from the table: a new row has its examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llamesh.kit import limits

OVER_CONTEXT = "context_length_exceeded"
"""The code of a prompt that is too long, by which agents and proxies know it."""


def code_of(limit: str) -> str:
    """The code of what exceeds this limit."""
    return OVER_CONTEXT if limit == "prompt.bytes" else "limit_exceeded"


DERIVED = frozenset({"prompt.bytes_per_token"})
"""Limits from which another follows: nothing in a body has so much of them."""

_ITEM, _OTHER, _KEY = 0, "other", None
CHAT = "chat/completions"


@dataclass(frozen=True)
class Tagged:
    """A field that is read because of the text of another field beside it."""

    name: str
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}[{self.text}]"


Step = str | int | None | Tagged
"""A name: that field, or any other. A number: an item of a list. None: the key itself."""


@dataclass(frozen=True)
class Example:
    """One place of a request at which a limit counts."""

    limit: str
    path: str
    """Of the request, below /v1/."""
    place: str
    make: Callable[[int], bytes]
    """The body that has so much of it there."""
    largest: int | None = None
    """The most that other limits allow there, if that is less than its own."""


def examples() -> list[Example]:
    """At least one for each limit, and one for each rule of the table that names it."""
    special = [
        Example(limit, _PATHS.get(limit, CHAT), "", make, _LARGEST.get(limit)) for limit, make in _SPECIAL.items()
    ]
    by_place: dict[tuple[str, str], Example] = {}
    for path, shape in limits.paths().items():
        for each in _from_shape(path, shape):
            if each.limit not in _SPECIAL:
                by_place.setdefault((each.limit, each.place), each)
    return sorted([*by_place.values(), *special], key=lambda example: (example.limit, example.place))


def body(limit: str, amount: int) -> bytes:
    """A body with so much of `limit`, at the first place of the table."""
    return next(example for example in examples() if example.limit == limit).make(amount)


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _request(path: tuple[Step, ...], value: Any) -> bytes:
    for step in reversed(path):
        value = _inside(step, value)
    return _dump({"model": "smol", **value})


def _inside(step: Step, value: Any) -> Any:
    if isinstance(step, int):
        return [value]
    return {step.tag: step.text, step.name: value} if isinstance(step, Tagged) else {step: value}


def words(size: int) -> str:
    """Text of so many bytes that breaks into short words."""
    return ("the quick " * (size // 10 + 1))[:size]


def _from_shape(where: str, body_shape: str) -> Iterator[Example]:
    shapes = limits.shapes()
    seen: set[str] = set()

    def shape_of(shape: Any) -> dict[str, Any]:
        return shape_of(shapes[shape]) if isinstance(shape, str) else shape

    def least(shape: Any) -> Any:
        """The smallest value that may stand there."""
        found = shape_of(shape)
        kinds = (("text", "a"), ("number", 1), ("flag", True), ("list", []), ("object", {}), ("schema", {}))
        return next((value for kind, value in kinds if kind in found), None)

    def walk(
        shape: Any, path: tuple[Step, ...], around: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, tuple[Step, ...], Callable[[int], bytes]]]:
        """`around`: the sums to which the items of the lists around the place count."""
        if isinstance(shape, str):
            if shape in seen:
                return
            seen.add(shape)
        found = shape_of(shape)
        if "text" in found:
            yield from texts(found["text"], path)
        for bound, limit in found.get("number", {}).items():
            if bound in ("counts", "endless"):
                continue
            assert bound in ("least", "most")
            yield limit, path, lambda amount: _request(path, amount)
        if "list" in found:
            rule = found["list"]
            counted = {"items", "total"} & rule.keys()
            item = least({kind: each for kind, each in shape_of(rule["of"]).items() if kind != "number"} or rule["of"])
            for count in counted:
                beside = around.count(rule[count])
                yield rule[count], path, lambda amount, beside=beside: _request(path, [item] * (amount - beside))
            yield from walk(rule["of"], (*path, _ITEM), (*around, rule.get("total", "")))
        if "object" in found:
            rule = found["object"]
            others = rule.get("others", {"any": True})
            if "entries" in rule:
                yield (
                    rule["entries"],
                    path,
                    lambda amount: _request(path, {f"k{n}": least(others) for n in range(amount)}),
                )
            if "keys" in rule:
                yield from texts(rule["keys"], (*path, _KEY))
            for name, field in rule.get("fields", {}).items():
                yield from walk(field, (*path, name), around)
            for text, fields in rule.get("tagged", {}).items():
                for name, field in fields.items():
                    yield from walk(field, (*path, Tagged(name, rule["tag"], text)), around)
            yield from walk(others, (*path, _OTHER), around)

    def texts(
        rule: dict[str, str], path: tuple[Step, ...]
    ) -> Iterator[tuple[str, tuple[Step, ...], Callable[[int], bytes]]]:
        def one(text: str) -> bytes:
            return _request(path[:-1], {text: None}) if path[-1] is _KEY else _request(path, text)

        start = {"media": "data:", "base64": "/9j/", "grammar": "root ::= [a] # "}.get(rule.get("reads", ""), "")
        if "bytes" in rule and rule["bytes"] != "body.key_bytes":
            yield rule["bytes"], path, lambda amount: one(start + _filling(rule, amount - len(start)))
        if "total" in rule and path[-1] is not _KEY:
            yield rule["total"], path, lambda amount: _shared_out(rule, path, amount)
        if "run" in rule and (path[-1] is not _KEY or limits.table()[rule["run"]].default < 1024):
            yield rule["run"], path, lambda amount: one("and " + "a" * amount)

    for limit, path, make in walk(body_shape, ()):
        place = ".".join("keys" if step is _KEY else str(step) for step in path)
        one_text = limit == "prompts.bytes" and _ITEM not in path
        yield Example(limit, where, place, make, limits.table()["prompt.bytes"].default if one_text else None)


def _filling(rule: dict[str, str], size: int) -> str:
    return "A" * size if rule.get("reads") == "base64" else words(size)


def _shared_out(rule: dict[str, str], path: tuple[Step, ...], amount: int) -> bytes:
    """The bytes in one text, or in the items of the innermost list if one text may not have so many."""
    longest = limits.table()[rule["bytes"]].default if "bytes" in rule else amount
    if amount <= longest or _ITEM not in path:
        return _request(path, words(amount))
    at = len(path) - 1 - path[::-1].index(_ITEM)
    pieces: list[Any] = [words(min(longest, amount - start)) for start in range(0, amount, longest)]
    for step in reversed(path[at + 1 :]):
        pieces = [_inside(step, piece) for piece in pieces]
    return _request(path[:at], pieces)


def schema(value: Any) -> bytes:
    """A request for an answer of a schema."""
    return _dump({"model": "smol", "response_format": {"type": "json_schema", "json_schema": {"schema": value}}})


def _properties(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(count)}, **more}


def _required(count: int) -> dict[str, Any]:
    return _properties(count, required=[f"p{n}" for n in range(count)])


def _nested(depth: int) -> dict[str, Any]:
    """So many schemas, each but the first in the one before."""
    found: dict[str, Any] = {"type": "null"}
    for _ in range(depth - 1):
        found = {"type": "array", "items": found}
    return found


def _grammar(text: str) -> bytes:
    return _dump({"model": "smol", "grammar": text})


def _schema_bytes(amount: int) -> bytes:
    empty = len(json.dumps({"description": ""}, separators=(",", ":")))
    return schema({"description": words(amount - empty)})


def _grammar_bytes(amount: int) -> bytes:
    """Members of anyOf, 40 bytes each by the estimate, and required properties of the last, 57 each and 3 for each letter of the name."""
    members = next(count for count in (1, 2, 3) if (amount - 36 - 40 * count) % 3 == 0)
    left = amount - 36 - 40 * members
    count = -(-left // (57 + 3 * 200))
    letters = (left - 57 * count) // 3
    lengths = [letters // count + (n < letters % count) for n in range(count)]
    names = [f"p{n:03d}".ljust(length, "x") for n, length in enumerate(lengths)]
    last = {"type": "object", "properties": {each: {"type": "null"} for each in names}, "required": names}
    return schema({"anyOf": [*([{"type": "null"}] * (members - 1)), last]})


def _ways(amount: int) -> bytes:
    """Alike objects, each with a property that is one of alike objects."""
    inner = next(count for count in range(2, 65) if amount % count == 0 and amount // count <= 64)
    member = {"type": "object", "properties": {"p": {"anyOf": [{"type": "object"}] * inner}}, "required": ["p"]}
    return schema({"anyOf": [member] * (amount // inner)})


def _generations(amount: int) -> bytes:
    """So many answers: as many prompts, times as many answers to each, as other limits allow."""
    answers = next(count for count in (1, 2, 3) if amount % count == 0 and amount // count <= 3)
    return _dump({"model": "smol", "prompt": ["a"] * (amount // answers), "n": answers})


_LARGEST = {"schema.grammar_bytes": 40_000, "generations": 4}
_PATHS = {"generations": "completions"}
_SPECIAL: dict[str, Callable[[int], bytes]] = {
    "body.depth": lambda amount: (
        _dump({"model": "smol"})[:-1] + b',"x":' + b"[" * (amount - 1) + b"]" * (amount - 1) + b"}"
    ),
    "body.keys": lambda amount: _dump(
        {
            "model": "smol",
            "x": [{f"k{k}": 1 for k in range(min(100, amount - 2 - n))} for n in range(0, amount - 2, 100)],
        }
    ),
    "body.object_keys": lambda amount: _dump({"model": "smol", "x": {f"k{n}": 1 for n in range(amount)}}),
    "body.values": lambda amount: _dump({"model": "smol", "x": [1] * (amount - 2)}),
    "body.strings": lambda amount: _dump({"model": "smol", "x": [""] * (amount - 1)}),
    "body.escaped_quotes": lambda amount: _dump({"model": "smol", "x": '"' * amount}),
    "body.key_bytes": lambda amount: _dump({"model": "smol", "k" * amount: 1}),
    "body.gap_bytes": lambda amount: _dump({"model": "smol"})[:-1] + b',"x":' + b" " * amount + b"1}",
    "generations": _generations,
    "probabilities.total": lambda amount: _dump({"model": "smol", "n_probs": 1, "max_tokens": amount}),
    "messages.argument_depth": lambda amount: _request(
        ("messages", 0, "tool_calls", 0, "function", "arguments"), "[" * amount + "]" * amount
    ),
    "media.items": lambda amount: _request(
        ("messages", 0, "content"), [{"type": "image_url", "image_url": {"url": "data:"}}] * amount
    ),
    "grammar.rules": lambda amount: _grammar("root ::= [a]\n" + "".join(f"r{n} ::= [a]\n" for n in range(amount - 1))),
    "grammar.depth": lambda amount: _grammar("root ::= " + "(" * amount + "[a]" + ")" * amount),
    "grammar.repetitions": lambda amount: schema({"type": "string", "pattern": f"^a{{{amount}}}$"}),
    "grammar.class_bytes": lambda amount: _grammar("root ::= [" + "a" * (amount - 1) + "]"),
    "grammar.alternatives": lambda amount: _grammar("root ::= " + " | ".join(f'"{n:04d}"' for n in range(amount))),
    "grammar.ways": lambda amount: schema({"type": "string", "pattern": "^" + "[a-z]?" * amount + "$"}),
    "grammar.branches": lambda amount: _grammar("root ::= [a] | " + " | ".join(['"b" root [c]'] * amount)),
    "samplers.items": lambda amount: _dump({"model": "smol", "samplers": [f"s{n}" for n in range(amount)]}),
    "schema.bytes": _schema_bytes,
    "schema.nodes": lambda amount: schema({"type": "array", "prefixItems": [{"type": "null"}] * (amount - 1)}),
    "schema.depth": lambda amount: schema(_nested(amount)),
    "schema.properties": lambda amount: schema(_required(amount)),
    "schema.optional": lambda amount: schema(_properties(amount)),
    "schema.enum": lambda amount: schema(
        {"type": "array", "prefixItems": [{"enum": ["a"] * min(50, amount - n)} for n in range(0, amount, 50)]}
    ),
    "schema.constants": lambda amount: schema({"enum": [f"{n:03d}" for n in range(amount)]}),
    "schema.patterns": lambda amount: schema(
        {
            "prefixItems": [{"type": "string", "pattern": "a" * min(100, amount - n)} for n in range(0, amount, 100)],
            "type": "array",
        }
    ),
    "schema.enum_bytes": lambda amount: schema({"enum": [words(amount - 2)]}),
    "schema.name_bytes": lambda amount: schema({"type": "object", "properties": {"p" * amount: {}}}),
    "schema.alternatives": lambda amount: schema({"anyOf": [{"const": n} for n in range(amount)]}),
    "schema.grammar_bytes": _grammar_bytes,
    "schema.ways": _ways,
    "schema.reference_bytes": lambda amount: schema({"$ref": "#/" + "a" * (amount - 2), "a" * (amount - 2): {}}),
    "schema.repetitions": lambda amount: schema(
        {
            "type": "array",
            "prefixItems": [{"type": "string", "maxLength": min(2000, amount - n)} for n in range(0, amount, 2000)],
        }
    ),
    "schema.pattern_bytes": lambda amount: schema({"type": "string", "pattern": "^" + "a" * (amount - 2) + "$"}),
}
