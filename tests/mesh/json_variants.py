# ruff: noqa: E501 - a table is read by its rows
"""Bodies in all the ways in which a text may be written, or nearly be, JSON: what one parser takes for a field another may pass over.

Invariant: a body depends on the state of the random generator alone.
"""

from __future__ import annotations

import json
import random

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
"""The paths on which llama.cpp tells what it read."""
LOWERED = {
    "window.tokens": 64,
    "probabilities": 2,
    "stop.items": 2,
    "stop.bytes": 4,
    "samplers.items": 2,
    "bias.entries": 2,
    "breakers.items": 1,
    "choices": 2,
    "prompts.items": 1,
    "generations": 2,
    "body.depth": 16,
}
"""Limits at which the bodies' values lie on both sides."""

_NUMBERS = ("1", "2", "3", "64", "65", "0", "-1", "-0", "2.0", "65.0", "6.5e1", "650e-1", "0.65E+2", "64.9", "1e400", "-1e400", "1e-400", "4294967297", "4294967361", "-4294967231", "2147483648", "18446744073709551681", "99999999999999999999999", "064", "+65", "0x41", "6_5", "65.", ".65e2", "1e", "- 1", "NaN", "Infinity", "-Infinity", '"65"', "[65]", "{}", "true", "null", "1" + "0" * 400, "0." + "0" * 400 + "1")  # fmt: skip
_TEXTS = ("a", "abcd", "abcde", "", "é", "éé", "\u20ac\u20ac", "\U0001f600a", '"', "\\", "a\nb", "\x00", "abc\x00def")
_NUMBER_FIELDS = ("repeat_last_n", "dry_penalty_last_n", "n_probs", "logprobs", "n", "n_cmpl", "n_discard", "id_slot")
_LIST_FIELDS = {
    "stop": _TEXTS,
    "samplers": ("top_k", "top_p", "min_p", "dry", "temperature", "top_k"),
    "dry_sequence_breakers": _TEXTS,
    "preserved_tokens": _TEXTS,
}
_GAPS = ("", "", "", "", " ", "\t", "\r\n", "\n ", "\f", "\v", "\u00a0", "\ufeff", "\x00", "/**/", "//x\n", "#x\n")
_ENDS = ("", "", "", "", "", "\n", " ", "}", ",", "{}", "\x00", '\x00,"n":65}', "//x", "null", "]", "\ufeff", "\x1a")
_BEGINS = ("", "", "", "", "", "\ufeff", "\ufeff\ufeff", " ", "\x00", "[", "\ufffe", "//x\n", ")]}',\n")


def _written(chance: random.Random, text: str, *, odd: bool = False) -> str:
    """The text as a JSON string, each character in one of the ways that JSON has for it; `odd`: sometimes in one that it has not."""
    ways = []
    for letter in text:
        units = letter.encode("utf-16-be")
        codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
        plain = json.dumps(letter, ensure_ascii=False)[1:-1]
        escaped = "".join(f"\\u{code:04{chance.choice('xX')}}" for code in codes)
        strange = (
            f"\\{letter}",
            f"\\x{codes[0] & 255:02x}",
            f"\\U{codes[0]:04x}",
            f"\\u{{{codes[0]:x}}}",
            letter,
            "\\ud800",
            "",
        )
        ways.append(
            chance.choice(strange) if odd and chance.random() < 0.05 else chance.choice((plain, plain, plain, escaped))
        )
    quote = "'" if odd and chance.random() < 0.03 else '"'
    return quote + "".join(ways) + quote


def _list(chance: random.Random, texts: tuple[str, ...]) -> str:
    items = [_written(chance, chance.choice(texts)) for _ in range(chance.randrange(5))]
    if chance.random() < 0.1:
        items.insert(chance.randrange(len(items) + 1), chance.choice(_NUMBERS))
    if chance.random() < 0.05:
        items = ["[" * (depth := chance.randrange(1, 40)) + "]" * depth]
    tail = "," if chance.random() < 0.01 else ""
    return f"[{','.join(items)}{tail}]"


def _bias(chance: random.Random) -> str:
    pairs = [(chance.choice(("5", "7", "10")), chance.choice(("1", "false", "-1e2", "null"))) for _ in range(chance.randrange(4))]  # fmt: skip
    if chance.random() < 0.5:
        return f"[{','.join(f'[{token},{bias}]' for token, bias in pairs)}]"
    return "{" + ",".join(f'"{token}":{bias}' for token, bias in pairs) + "}"


def _member(chance: random.Random) -> tuple[str, str]:
    """A name and a value as written."""
    kind = chance.random()
    if kind < 0.55:
        name, value = chance.choice(_NUMBER_FIELDS), chance.choice(_NUMBERS if chance.random() < 0.6 else _NUMBERS[:14])
    elif kind < 0.85:
        name = chance.choice(tuple(_LIST_FIELDS))
        texts = _LIST_FIELDS[name]
        value = _list(chance, texts) if chance.random() < 0.8 else _written(chance, chance.choice(texts))
    elif kind < 0.95:
        name, value = "logit_bias", _bias(chance)
    else:
        name, value = "x", "[" * (depth := chance.choice((1, 14, 15, 16, 40))) + "]" * depth
    # Names that are not quite those that are read.
    changed = chance.random()
    if changed < 0.03:
        name = chance.choice(
            (name.upper(), name + "\x00", "\ufeff" + name, name + " ", name[:-1], name.replace("_", "-"))
        )
    return name, value


def body(chance: random.Random) -> tuple[str, bytes]:
    """A path and a body for it."""
    path = chance.choice((COMPLETIONS, COMPLETIONS, CHAT))
    prompt = {
        COMPLETIONS: ("prompt", chance.choice(('"a"', '"a"', '["a"]', '["a","b"]', "[5,6]", '[["a"],[5]]'))),
        CHAT: ("messages", '[{"role":"user","content":"a"}]'),
    }[path]
    members = [prompt, ("verbose", "true"), ("n_predict", "1")]
    for _ in range(chance.choice((1, 1, 2, 3))):
        name, value = _member(chance)
        members.append((name, value))
        if chance.random() < 0.2:  # The same name again, with another value.
            members.append((name, chance.choice((value, *_NUMBERS, '["a"]', "null"))))
    chance.shuffle(members)
    odd = chance.random() < 0.3  # Not quite JSON.

    def gap() -> str:
        return chance.choice(_GAPS if odd and chance.random() < 0.05 else _GAPS[:8])

    parts = [f"{gap()}{_written(chance, name, odd=odd)}{gap()}:{gap()}{value}{gap()}" for name, value in members]
    separator = ",," if odd and chance.random() < 0.03 else ","
    trailing = "," if odd and chance.random() < 0.03 else ""
    begin, end = (chance.choice(ways) if chance.random() < (0.3 if odd else 0.02) else "" for ways in (_BEGINS, _ENDS))
    text = f"{begin}{{{separator.join(parts)}{trailing}}}{end}".encode(errors="surrogatepass")
    if odd and chance.random() < 0.15:  # Bytes that are no text.
        at = chance.randrange(len(text))
        wrong = chance.choice((b"\xff", b"\xc0\xa2", b"\xed\xa0\x80", b"\x80", b"\xf5", b"\x00", b"\\", b'"', b""))
        text = text[:at] + wrong + text[at + chance.randrange(2) :]
    return path, text
