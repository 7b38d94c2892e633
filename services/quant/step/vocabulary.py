"""The vocabulary of a checkpoint as llama.cpp wants it: from `tokenizer.json`, read without trust.

llama.cpp has two kinds for these models: `gpt2` (pairs of bytes are merged, in words that a pattern cuts out) and `llama` (pairs of letters
are merged by their scores, and letters that are unknown become bytes). Its patterns have names, so a tokenizer is converted only if its
pattern is one of them; a wrong pattern would give a model that answers, and answers worse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gguf

from services.quant.checkpoint_config import shown

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = r"[^\r\n\p{L}\p{N}]?[%s]*[%s]+%s|[^\r\n\p{L}\p{N}]?[%s]+[%s]*%s"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
        rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2",
        rf"{_CASED % (_UPPER, _LOWER, '', _UPPER, _LOWER, '')}|\p{{N}}|{_REST_WITH_SLASH}": "tekken",
        rf"{_CASED % (_UPPER, _LOWER, _SUFFIX, _UPPER, _LOWER, _SUFFIX)}|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}": "gpt-4o",
    }
)
"""Pattern of a tokenizer that cuts a text into words, and llama.cpp's name of it."""
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "\u2581"
_LOOKS_SPECIAL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
"""Tokens that steer a model although their checkpoint does not call them special: a text of a user must not become one."""


class VocabularyRefusedError(ValueError):
    """The tokenizer cannot be converted."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens by their ids. `scores` are for the kind `llama` only. `begins_with_space`: a text gets a space before it."""

    kind: str
    pattern: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    begins_with_space: bool

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write the fields of the vocabulary."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pattern)
        writer.add_token_list(list(self.tokens))
        if self.scores:
            writer.add_token_scores(list(self.scores))
        writer.add_add_space_prefix(self.begins_with_space)
        writer.add_token_types(list(self.types))


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """Return the vocabulary of a parsed tokenizer.json with `size` tokens, of which some may be unused. Raises VocabularyRefusedError."""
    try:
        vocabulary = _vocabulary(tokenizer, size)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, VocabularyRefusedError):
            raise
        raise VocabularyRefusedError(f"its tokenizer.json is not that of a tokenizer: {shown(error)}") from error
    if len(set(vocabulary.tokens)) != size:
        # llama.cpp aborts.
        raise VocabularyRefusedError("its tokenizer has two tokens with the same text")
    return vocabulary


def _vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise VocabularyRefusedError(f"its tokenizer is of the kind {shown(model['type'])}; BPE is converted")
    tokens, types = _tokens(model["vocab"], tokenizer.get("added_tokens") or [], size)
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    cuts = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not model.get("byte_fallback"):
        _refuse_others(normalizers, {"NFC"})
        return Vocabulary(
            "gpt2", pattern_of(tokenizer.get("pre_tokenizer")), tokens, types, [], begins_with_space=False
        )
    _refuse_others([*normalizers, *cuts], {"Prepend", "Replace", "Metaspace"})
    scores = _scores(tokens, model["merges"])
    begins = any(map(_puts_space_first, [*normalizers, *cuts]))
    return Vocabulary("llama", "default", *_with_spaces(tokens, types, model.get("unk_token")), scores, begins)


def _refuse_others(parts: Sequence[Any], known: Collection[str]) -> None:
    """Raise VocabularyRefusedError if a part changes a text in a way that llama.cpp does not."""
    for part in parts:
        replaces = part["type"] == "Replace" and (part["pattern"], part["content"]) != ({"String": " "}, _SPACE)
        if part["type"] not in known or replaces:
            raise VocabularyRefusedError(
                f"its tokenizer changes texts by {shown(part['type'])}, which is not converted"
            )


def pattern_of(pre_tokenizer: Any) -> str:
    """Return llama.cpp's name of the pattern by which a pre-tokenizer cuts a text. Raises VocabularyRefusedError."""
    match [_part(part) for part in _parts(pre_tokenizer, "pretokenizers")]:
        case ["words"]:
            return "gpt-2"
        case ["digits", "words"]:
            return "smollm"
        case [pattern, "bytes"] if pattern in PATTERNS:
            return PATTERNS[pattern]
    raise VocabularyRefusedError(
        "its tokenizer cuts text into words in a way for which llama.cpp has no name that is known here:"
        " set LLAMA_CONVERT_BIN to llama.cpp's own converter"
    )


def _part(part: Any) -> str:
    """Return what a part of a pre-tokenizer does: its pattern, or "words", "digits", "bytes"; empty for any other."""
    match part:
        case {"type": "ByteLevel"} if not part.get("add_prefix_space"):
            return "words" if part.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not part.get("invert"):
            return pattern
    return ""


def _tokens(vocabulary: Mapping[str, int], added: Sequence[Any], size: int) -> tuple[list[str], list[int]]:
    """Return the tokens by their ids, and their types. Added tokens that the embeddings lack are left out, as elsewhere."""
    if not all(type(each) is int and 0 <= each < size for each in vocabulary.values()):
        raise VocabularyRefusedError(
            f"its tokenizer has ids that are not from 0 to {size - 1}, by vocab_size in its config.json"
        )
    tokens = [f"[PAD{at}]" for at in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for text, at in vocabulary.items():
        tokens[at], types[at] = text, int(gguf.TokenType.NORMAL)
    for token in added:
        at, text = token["id"], token["content"]
        if type(at) is not int or at < 0 or not isinstance(text, str):
            raise VocabularyRefusedError("its tokenizer has an added token without an id or a text")
        if at < size:
            special = token.get("special") or _LOOKS_SPECIAL.fullmatch(text)
            tokens[at], types[at] = text, int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    for text in tokens:
        text.encode()
    return tokens, types


def _with_spaces(tokens: list[str], types: list[int], unknown: str | None) -> tuple[list[str], list[int]]:
    """Mark bytes and the unknown token, as the kind `llama` wants them."""
    for at, text in enumerate(tokens):
        if text in _BYTE_TOKENS:
            types[at] = int(gguf.TokenType.BYTE)
        elif text == unknown:
            types[at] = int(gguf.TokenType.UNKNOWN)
        elif types[at] == gguf.TokenType.USER_DEFINED:
            tokens[at] = text.replace(_SPACE, " ")
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Return the score of each token: an earlier merge has a higher one. llama.cpp merges the pair with the highest score first."""
    rank: dict[str, int] = {}
    for at, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, at)
    return [-float(rank.get(text, len(merges))) for text in tokens]


def _puts_space_first(part: Any) -> bool:
    """Return whether a part of a tokenizer puts a space before a text. Metaspace has an older form."""
    match part:
        case {"type": "Prepend"}:
            return True
        case {"type": "Metaspace", "prepend_scheme": scheme}:
            return bool(scheme != "never")
        case {"type": "Metaspace"}:
            return bool(part.get("add_prefix_space", True))
    return False


def _parts(whole: Any, name: str) -> list[Any]:
    """Return the parts of a normaliser or pre-tokenizer, which is one of them, a sequence of them, or missing."""
    if not whole:
        return []
    return list(whole[name]) if whole["type"] == "Sequence" else [whole]
