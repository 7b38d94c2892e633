"""envoy/lua against Python's parser: the same model and the same fields at the top wherever the text is JSON, in linear time."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import scripts
from llamesh.kit import limits

_READ = b"""
function(request_limits)
  return function(path, text)
    local said, problem = request_limits.read(path, text)
    if said then
      return "read", said.model or false
    end
    return problem.code, problem.param or false
  end
end
"""
_lua = LuaRuntime(encoding=None)
_lua.execute(scripts.limits_modules({}).encode())
_read = _lua.eval(_READ)(_lua.eval(b"require('request_limits')"))


def scan(text: bytes, path: bytes = b"/v1/completions") -> tuple[str, str | None]:
    """`read` and the model that it names, or the code of the refusal and the field at fault."""
    code, said = _read(path, text)
    return code.decode(), _known(said.decode("latin-1")) if said is not False else None


def _known(text: str) -> str:
    """Names beyond ASCII need only be told from those that can be served."""
    return text if text.isascii() else "beyond ASCII"


def expected(text: bytes) -> tuple[str, str | None]:
    """The same by Python's parser."""
    models: list[Any] = []
    for name, value in json.loads(text, object_pairs_hook=tuple):
        if name == "id_slot":
            return "unsupported_parameter", "id_slot"
        if name == "model":
            if models:
                return "invalid_value", "model"
            models.append(value)
    return "read", _known(models[0]) if models and isinstance(models[0], str) else None


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


def test_the_same_as_a_parser_in_random_json() -> None:
    chance = random.Random(7)
    seen = {"read": 0, "unsupported_parameter": 0, "invalid_value": 0}
    named = 0
    for _ in range(6000):
        text = _document(chance)
        wanted = expected(text)
        assert scan(text) == wanted, text
        seen[wanted[0]] += 1
        named += wanted[1] is not None and wanted[0] == "read"
    assert min(seen.values()) > 400
    assert named > 500


def test_a_string_is_read_the_same_however_it_is_written() -> None:
    """What is told apart by its bytes (two keys of a schema, a reference and its target) must be the engine's own."""
    unescaped = _lua.eval(b"require('json_text').unescaped")
    chance = random.Random(9)
    for _ in range(3000):
        alphabet = 'a"\\/\n\x00\x7f\x80\u07ff\u0800\u3002\ud7ff\ue000\uffff\U00010000\U0001f600\U0010ffff'
        text = "".join(chance.choices(alphabet, k=chance.randrange(8)))
        assert unescaped(_written(chance, text)[1:-1].encode()).decode() == text


def test_random_text_that_is_cut_or_changed_never_fails_and_never_hides_a_field() -> None:
    """Whatever is still JSON after the change is read as JSON; the rest may be refused, but not stumble."""
    chance = random.Random(8)
    still_json = 0
    for _ in range(6000):
        text = bytearray(_document(chance))
        for _ in range(chance.randrange(1, 3)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(2)] = chance.choice([b"", b'"', b"\\", b"{", b"}", b",", b"x", b"\xff"])
            if not text:
                break
        found = scan(bytes(text))
        assert found[0] in ("read", "invalid_json", "unsupported_parameter", "invalid_value")
        try:
            wanted = expected(bytes(text))
        except (ValueError, TypeError):
            continue
        if bytes(text).strip()[:1] == b"{":
            still_json += 1
            assert found == wanted, bytes(text)
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
        b"\xef\xbb{}",
        b"{}\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b'{"prompt":+1}',
        b'{"n":x}',
        b'{"n":0x10}',
        b'{"n":1 2}',
        b'{"stop":["a" "b"]}',
        b'{"json_schema":{"a":}}',
        b'{"json_schema":{"a"}}',
        b'{"json_schema":[1}}',
        b'{"json_schema":',
    ],
)
def test_plain_nonsense_is_found(text: bytes) -> None:
    assert scan(text) == ("invalid_json", None)


CHAT = b"/v1/chat/completions"
FRAMES = [
    b'{"model":"smol","x":"%s"}',
    b'{"x":[%s]}',
    b"{%s}",
    b'{"x" %s',
    b'{"prompt":"%s"}',
    b'{"messages":[%s{}]}',
    b'{"messages":[{"content":"%s"}]}',
    b'{"messages":[{"content":[{"type":"image_url","image_url":"data:%s"}]}]}',
    b'{"messages":[{"content":[{"image_url":"/9j/%s","type":"image_url"}]}]}',
    b'{"messages":[{"content":[{"image_url":{"url":[%s]},"type":"image_url"}]}]}',
    b'{"chat_template_kwargs":{"a":"%s"}}',
    b'{"messages":[{"content":[%s{}]}]}',
    b'{"grammar":"%s"}',
    b'{"json_schema":{"a":{%s}}}',
    b'{"json_schema":{"pattern":"%s"}}',
    b'{"chat_template_kwargs":{%s}}',
]
MEBIBYTES = 8
SIZE = MEBIBYTES << 20


@pytest.mark.parametrize(
    "filling",
    [b"a", b"\\\\", b'\\"', b" ", b"\\u0041", b'":', b'","', b"{", b'{"a":[1]},', b"1,", b'"model":1,', b'"a":{},'],
)
@pytest.mark.parametrize("frame", FRAMES)
def test_large_bodies_take_linear_time(filling: bytes, frame: bytes) -> None:
    text = frame % (filling * (SIZE // len(filling)))
    started = time.process_time()
    scan(text, CHAT)
    # 20 times what it takes; a scan that looked at anything again and again would take hours.
    assert time.process_time() - started < 0.3 * MEBIBYTES


@pytest.mark.parametrize(
    "part",
    [
        b'{"text":"a","type":"text"}',
        b'{"input":{"a":["\\n"]},"type":"tool_use"}',
        b'{"content":[{"text":"a","type":"text"},{"source":{"url":"data:"},"type":"image"}],"type":"tool_result"}',
        b'{"content":[[[[]]]],"text":"a","source":"' + b"a" * 10_000 + b'"}',
    ],
)
def test_fields_that_wait_for_the_type_of_their_part_take_linear_time(part: bytes) -> None:
    message = b'{"content":[' + b",".join([part] * 50) + b"]}"
    text = b'{"messages":[' + b",".join([message] * (SIZE // len(message))) + b"]}"
    started = time.process_time()
    scan(text, b"/v1/messages")
    assert time.process_time() - started < 0.3 * MEBIBYTES


@pytest.mark.parametrize("frame", FRAMES)
def test_limits_raised_to_their_bounds_leave_the_time_linear(frame: bytes) -> None:
    lua = LuaRuntime(encoding=None)
    lua.execute(scripts.limits_modules({name: limit.most for name, limit in limits.table().items()}).encode())
    read = lua.eval(_READ)(lua.eval(b"require('request_limits')"))
    for filling in (b"a", b'\\"', b"1,", b'"a",', b"(", b"{1,2}", b'"a":1,'):
        text = frame % (filling * ((2 << 20) // len(filling)))
        started = time.process_time()
        read(CHAT, text)
        assert time.process_time() - started < 10
