"""The tokenizer of a checkpoint becomes llama.cpp's vocabulary only if llama.cpp has a name for the way in which it cuts text."""

from __future__ import annotations

from typing import Any

import gguf
import pytest

from services.quant.step.vocabulary import PATTERNS, VocabularyRefusedError, pattern_of, read_vocabulary

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = {"type": "ByteLevel", "add_prefix_space": False}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""As Llama 3's tokenizer.json has it."""
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str, **fields: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | fields


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (WORDS, "gpt-2"),
        (_sequence(DIGITS, WORDS), "smollm"),
        (_sequence(_split(LLAMA_3), BYTES), "llama-bpe"),
        (_sequence(_split(QWEN_2), BYTES), "qwen2"),
        (_sequence(_split(TEKKEN), BYTES), "tekken"),
        (_sequence(_split(GPT_4O), BYTES), "gpt-4o"),
    ],
)
def test_known_ways_to_cut_a_text_have_their_names(cut: dict[str, Any], name: str) -> None:
    assert pattern_of(cut) == name


def test_every_pattern_has_an_example() -> None:
    assert set(PATTERNS) == {LLAMA_3, QWEN_2, TEKKEN, GPT_4O}


@pytest.mark.parametrize(
    "cut",
    [
        None,
        BYTES,
        _sequence(),
        _sequence(_split(r"\p{N}"), BYTES),
        _sequence(_split(LLAMA_3, behavior="Removed"), BYTES),
        _sequence(_split(LLAMA_3, invert=True), BYTES),
        _sequence(_split(LLAMA_3), WORDS),
        _sequence({"type": "Digits", "individual_digits": False}, WORDS),
        _sequence({"type": "Whitespace"}, WORDS),
    ],
)
def test_another_way_is_refused(cut: Any) -> None:
    with pytest.raises(VocabularyRefusedError, match="LLAMA_CONVERT_BIN"):
        pattern_of(cut)


def _tokenizer(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]} | changes.pop("model", {})
    return {"model": model, "pre_tokenizer": WORDS, "added_tokens": []} | changes


def test_ids_without_a_token_are_unused() -> None:
    added = [{"id": 4, "content": "<end>", "special": True}, {"id": 5, "content": "tool", "special": False}]
    beyond = {"id": 7, "content": "<pad>", "special": True}
    found = read_vocabulary(_tokenizer(added_tokens=[*added, beyond]), 7)
    assert found.tokens == ["a", "b", "ab", "[PAD3]", "<end>", "tool", "[PAD6]"]
    kind = gguf.TokenType
    assert found.types == [kind.NORMAL] * 3 + [kind.UNUSED, kind.CONTROL, kind.USER_DEFINED, kind.UNUSED]
    assert (found.kind, found.pattern, found.scores) == ("gpt2", "gpt-2", [])


def test_an_earlier_merge_has_a_higher_score() -> None:
    """llama.cpp merges the pair with the highest score first, the tokenizer the pair that comes first in its list."""
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "c": 4, "bc": 5, "ab": 6, "abc": 7}
    model = {
        "vocab": vocabulary,
        "merges": ["b c", ["a", "b"], "a bc", "ab c"],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    found = read_vocabulary(_tokenizer(model=model, pre_tokenizer=None), 8)
    assert [found.scores[vocabulary[text]] for text in ("bc", "ab", "abc")] == [0, -1, -2]
    assert found.scores[vocabulary["a"]] == -4
    assert found.types[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE, gguf.TokenType.NORMAL]
    assert (found.kind, found.pattern) == ("llama", "default")


@pytest.mark.parametrize(
    ("parts", "begins"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False),
        ({"pre_tokenizer": {"type": "Metaspace"}}, True),
        ({"normalizer": None, "pre_tokenizer": None}, False),
    ],
)
def test_the_space_before_a_text_is_that_of_the_tokenizer(parts: dict[str, Any], begins: bool) -> None:
    tokenizer = _tokenizer(model={"byte_fallback": True}) | {"pre_tokenizer": None} | parts
    assert read_vocabulary(tokenizer, 3).begins_with_space is begins


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<｜User｜>"])
def test_a_token_that_looks_special_steers_and_is_no_text(text: str) -> None:
    added = [{"id": 3, "content": text, "special": False}]
    assert read_vocabulary(_tokenizer(added_tokens=added), 4).types[3] == gguf.TokenType.CONTROL


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"pre_tokenizer": _sequence(DIGITS, {"type": "Metaspace"}), "model": {"byte_fallback": True}}, "Digits"),
        (
            {
                "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
                "pre_tokenizer": None,
                "model": {"byte_fallback": True},
            },
            "Replace",
        ),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "LLAMA_CONVERT_BIN"),
    ],
)
def test_a_tokenizer_that_changes_texts_in_another_way_is_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(VocabularyRefusedError, match=said):
        read_vocabulary(_tokenizer(**parts), 3)


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [
        (_tokenizer(added_tokens=[{"id": 3, "content": "a"}]), 4),
        (_tokenizer(model={"vocab": {"a": 0, "[PAD1]": 2}}), 3),
    ],
)
def test_two_tokens_with_one_text_are_refused(tokenizer: Any, size: int) -> None:
    """llama.cpp aborts with them."""
    with pytest.raises(VocabularyRefusedError, match="same text"):
        read_vocabulary(tokenizer, size)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (_tokenizer(model={"type": "Unigram"}), "kind Unigram"),
        (_tokenizer(model={"vocab": {"a": 3}}), "not from 0 to 2"),
        (_tokenizer(model={"vocab": {"a": -1}}), "not from 0 to 2"),
        (_tokenizer(model={"vocab": {"a": "0"}}), "not from 0 to 2"),
        (_tokenizer(model={"vocab": {"a": True}}), "not from 0 to 2"),
        (_tokenizer(added_tokens=[{"id": -1, "content": "x"}]), "without an id"),
        (_tokenizer(model={"vocab": {"\ud800": 0}}), "not that of a tokenizer"),
        (
            _tokenizer(model={"byte_fallback": True, "merges": ["a b", 3]}, pre_tokenizer=None),
            "not that of a tokenizer",
        ),
        (_tokenizer(added_tokens=[{"id": 1, "content": 7}]), "without an id or a text"),
        (_tokenizer(added_tokens=[{"content": "x"}]), "not that of a tokenizer"),
        (_tokenizer(model={"vocab": []}), "not that of a tokenizer"),
        ({}, "not that of a tokenizer"),
        ([], "not that of a tokenizer"),
        (None, "not that of a tokenizer"),
    ],
)
def test_another_document_is_no_tokenizer(tokenizer: Any, said: str) -> None:
    with pytest.raises(VocabularyRefusedError, match=said):
        read_vocabulary(tokenizer, 3)
