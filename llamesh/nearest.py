"""Finds the names that a person probably meant by an unknown word ("did you mean"). Pure.

A name that begins with the word comes first, the shortest of several; then the names that are most like it; then those of which it is a
part. Upper and lower case count as equal, and the end that most names of models share counts for nothing.

Invariant: the work is bounded, whatever the number and the length of the names are: callers may give names that others have chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import islice

MAX_NAMES = 1000
"""Names that are considered, the first of all that are given."""
MAX_LENGTH = 128
"""Characters of a word or a name; longer ones are like no other."""
MAX_COMPARED = 20
"""Names that are compared in order of their letters: the ones that share most letters with the word."""
COMMON_END = ".gguf"
"""End of names of models, by which alone each is like each."""
MIN_PART = 3
"""Characters that a word needs to be taken for a part of a name."""


def nearest(word: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """Return the name that a word probably means; empty if there is none. `likeness`: see `near`."""
    return next(iter(near(word, names, 1, likeness)), "")


def near(word: str, names: Iterable[str], most: int, likeness: float = 0.6) -> list[str]:
    """Return at most `most` names that a word may mean, most probable first. `likeness`: the least share of equal letters, 0 to 1."""
    if len(word) > MAX_LENGTH:
        return []
    wanted = _compared(word)
    known = [(_compared(name), name) for name in islice(names, MAX_NAMES) if len(name) <= MAX_LENGTH]
    containing = [(folded, name) for folded, name in known if len(wanted) >= MIN_PART and wanted in folded]
    containing.sort(key=lambda each: len(each[0]))
    beginning = [name for folded, name in containing if folded.startswith(wanted)]
    found = [*beginning, *_alike(wanted, known, likeness), *(name for _, name in containing)]
    return list(dict.fromkeys(found))[:most]


def _compared(name: str) -> str:
    return name.casefold().removesuffix(COMMON_END)


def _alike(wanted: str, known: Iterable[tuple[str, str]], likeness: float) -> list[str]:
    matcher = SequenceMatcher(b=wanted, autojunk=False)

    def rated(names: Iterable[tuple[str, str]], *, exact: bool) -> list[tuple[float, tuple[str, str]]]:
        rates = []
        for each in names:
            matcher.set_seq1(each[0])
            # The quick ratio ignores the order of the letters, and is never less than the exact one.
            rates.append((matcher.ratio() if exact else matcher.quick_ratio(), each))
        return sorted((rate for rate in rates if rate[0] >= likeness), key=lambda rate: -rate[0])

    candidates = [each for _, each in rated(known, exact=False)[:MAX_COMPARED]]
    return [name for _, (_, name) in rated(candidates, exact=True)]
