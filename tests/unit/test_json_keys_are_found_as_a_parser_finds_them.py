"""envoy/lua/json_keys.lua against Python's parser: the same keys wherever the text is JSON, in linear time."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import templates

Found = tuple[str, int, str | None]
"""Name of a watched key, its depth, and its value where that is a string."""

_SCAN = b"""
function(json_keys, watched)
  return function(text)
    local found = {}
    local readable = json_keys.each(text, watched, function(name, depth, at)
      found[#found + 1] = { name, depth, json_keys.string_at(text, at, 1000) or false }
    end)
    return readable, found
  end
end
"""
_lua = LuaRuntime(encoding=None)
_watched = _lua.table_from({b"model": True, b"id_slot": True})
_scan = _lua.eval(_SCAN)(_lua.execute(templates.lua("json_keys").encode()), _watched)


def scan(text: bytes) -> list[Found] | None:
    """The watched keys in their order; None where the text is refused."""
    readable, found = _scan(text)
    if not readable:
        return None
    rows = [(row[1].decode(), int(row[2]), row[3]) for row in found.values()]
    return [(name, depth, value.decode("latin-1") if value is not False else None) for name, depth, value in rows]


def expected(text: bytes) -> list[Found]:
    """The same by Python's parser. Characters beyond ASCII are left to the texts that have none in watched values."""
    found: list[Found] = []

    def walk(pairs: Any, depth: int) -> None:
        if isinstance(pairs, tuple):
            for name, value in pairs:
                if name in ("model", "id_slot"):
                    found.append((name, depth, value if isinstance(value, str) else None))
                walk(value, depth + 1)
        elif isinstance(pairs, list):
            for value in pairs:
                walk(value, depth + 1)

    walk(json.loads(text, object_pairs_hook=tuple), 1)
    return found


def _text(chance: random.Random, *, ascii_only: bool) -> str:
    pieces = [
        '"',
        "\\",
        "\\\\",
        '\\"',
        "model",
        '"model":',
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        " ",
        "\n",
        "\t",
        "\x00",
        "u006d",
    ]
    pieces += [] if ascii_only else ["é", "\U0001f600", "\u2028"]
    return "".join(chance.choices(pieces, k=chance.randrange(6)))


def _written(chance: random.Random, text: str) -> str:
    """The text as a JSON string, each of its characters in one of the ways JSON allows."""
    ways = []
    for character in text:
        plain = json.dumps(character, ensure_ascii=chance.random() < 0.5)[1:-1]
        escaped = "".join(f"\\u{int.from_bytes(unit, 'big'):04{chance.choice('xX')}}" for unit in _units(character))
        ways.append(chance.choice([plain, plain, escaped]))
    return f'"{"".join(ways)}"'


def _units(character: str) -> list[bytes]:
    encoded = character.encode("utf-16-be")
    return [encoded[at : at + 2] for at in range(0, len(encoded), 2)]


def _value(chance: random.Random, depth: int) -> str:
    def gap() -> str:
        return "".join(chance.choices(" \t\r\n", k=chance.choice([0, 0, 1, 3])))

    kind = chance.randrange(6 if depth < 6 else 3)
    if kind == 0:
        return chance.choice(["null", "true", "false", "0", "-1.5e+10", "[]", "{}", "[ ]"])
    if kind <= 2:
        return _written(chance, _text(chance, ascii_only=False))
    if kind == 3:
        items = [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        return f"[{gap()}{f'{gap()},{gap()}'.join(items)}{gap()}]"
    return _object(chance, depth, gap)


def _object(chance: random.Random, depth: int, gap: Any) -> str:
    members = []
    for _ in range(chance.randrange(5)):
        watched = chance.random() < 0.5
        name = chance.choice(["model", "id_slot"]) if watched else _text(chance, ascii_only=False)
        text = chance.random() < 0.5
        value = _written(chance, _text(chance, ascii_only=True)) if watched and text else _value(chance, depth + 1)
        if watched and not value.isascii():
            value = "null"
        members.append(f"{_written(chance, name)}{gap()}:{gap()}{value}")
    return f"{{{gap()}{f'{gap()},{gap()}'.join(members)}{gap()}}}"


def _document(chance: random.Random) -> bytes:
    return _object(chance, 0, lambda: chance.choice(["", "", " ", "\r\n\t"])).encode()


def _same(found: list[Found] | None, wanted: list[Found]) -> bool:
    """Equal, but that escapes beyond ASCII need only be told from any name."""
    if found is None or len(found) != len(wanted):
        return False
    return all(
        (mine[:2], mine[2] is None) == (theirs[:2], theirs[2] is None)
        and (theirs[2] is None or not theirs[2].isascii() or mine[2] == theirs[2])
        for mine, theirs in zip(found, wanted, strict=True)
    )


def test_the_same_keys_as_a_parser_in_random_json() -> None:
    chance = random.Random(7)
    watched = 0
    for _ in range(4000):
        text = _document(chance)
        wanted = expected(text)
        watched += len(wanted)
        assert _same(scan(text), wanted), text
    assert watched > 5000


def test_random_text_that_is_cut_or_changed_never_fails_and_never_hides_a_key() -> None:
    """Whatever is still JSON after the change is read as JSON; the rest may be refused, but not stumble."""
    chance = random.Random(8)
    still_json = 0
    for _ in range(4000):
        text = bytearray(_document(chance))
        for _ in range(chance.randrange(1, 3)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(2)] = chance.choice([b"", b'"', b"\\", b"{", b"}", b",", b"x", b"\xff"])
            if not text:
                break
        found = scan(bytes(text))
        try:
            wanted = expected(bytes(text))
        except ValueError:
            continue
        if bytes(text).strip()[:1] == b"{":
            still_json += 1
            assert _same(found, wanted), bytes(text)
    assert still_json > 200


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"[]",
        b"null",
        b'"{}"',
        b'{"a',
        b'{"a\\"}',
        b'{"a":1',
        b"{}}",
        b"{}x",
        b"{}{}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_plain_nonsense_is_told(text: bytes) -> None:
    assert scan(text) is None


def test_nesting_has_a_limit() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert scan(nested(256)) == []
    assert scan(nested(257)) is None


MEBIBYTES = 8
SIZE = MEBIBYTES << 20


@pytest.mark.parametrize(
    "filling",
    [b"a", b"\\\\", b'\\"', b" ", b"\\u0041", b'":', b'","', b"{", b'{"a":[1]},', b"1,", b'"model":1,'],
)
@pytest.mark.parametrize("frame", [b'{"model":"smol","x":"%s"}', b'{"x":[%s]}', b"{%s}", b'{"x" %s'])
def test_large_bodies_take_linear_time(filling: bytes, frame: bytes) -> None:
    text = frame % (filling * (SIZE // len(filling)))
    started = time.process_time()
    scan(text)
    # 20 times what it takes; a scan that looked at anything again and again would take hours.
    assert time.process_time() - started < 1.5 * MEBIBYTES
