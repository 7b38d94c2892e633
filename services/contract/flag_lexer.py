"""Lexer for a text of flags: splits it into words at blanks. Quotes enclose a whole value or are refused.

Blanks are spaces, tabs and line ends. In double quotes, a backslash escapes a quote or a backslash, as in a shell.

Invariant: an unquoted word is printable ASCII, so that a look-alike character cannot imitate a flag.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,24})?|\.[0-9]{1,24})(?:[eE][+-]?[0-9]{1,3})?")
"""The accepted spelling of a decimal number."""

_BLANKS = " \t\r\n"
_WORD = re.compile(
    rf"""(?P<flag>-[^{_BLANKS}'"=]*=)?"""
    rf"""(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^{_BLANKS}'"]*))(?=[{_BLANKS}]|\Z)""",
    re.DOTALL,
)
_ESCAPED = re.compile(r'\\(["\\])')


class WordError(ValueError):
    """A word that cannot be read."""

    def __init__(self, word: str, problem: str) -> None:
        super().__init__(f"{word}: {problem}")
        self.word = word
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Word:
    """One word."""

    text: str
    """The value, or the whole word if it has no `=`."""
    flag: str
    """The part before `=`; empty if there is none."""
    quoted: bool

    @property
    def may_be_flag(self) -> bool:
        """Whether the word looks like a flag: it begins with a dash, is not quoted and is not a number."""
        return not self.quoted and self.text.startswith("-") and not NUMBER.fullmatch(self.text)


def words(text: str) -> Iterator[Word]:
    """Yield the words of a text, in order. Raises WordError at the first word that cannot be read."""
    at = 0
    while at < len(text):
        if text[at] in _BLANKS:
            at += 1
            continue
        found = _WORD.match(text, at)
        word = re.split(f"[{_BLANKS}]", text[at:], maxsplit=1)[0]
        if found is None:
            raise WordError(word, "has a quote that does not enclose a whole value")
        bare, single, double = found.group("bare", "single", "double")
        flag = (found["flag"] or "").removesuffix("=")
        if not _plain(flag + (bare or "")):
            raise WordError(word, "has a character that is not printable ASCII")
        value = bare if bare is not None else single if single is not None else _ESCAPED.sub(r"\1", double)
        if bare is None and not all(char.isprintable() or char in _BLANKS for char in value):
            raise WordError(word, "has a character that cannot be printed")
        yield Word(value, flag, bare is None)
        at = found.end()


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
