"""The rule for the names of files and objects that a source lists or a caller gives.

Invariant: a name that keeps the rule can be requested, stored and shown. Control and format characters are refused because they change how
a terminal or a page shows the text around them (escape sequences, changes of direction).
"""

from __future__ import annotations

import unicodedata

MAX_NAME_BYTES = 1024
"""Maximum size of a name, with its folders, in UTF-8. It is the limit of S3."""
_REFUSED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format, surrogate, line and paragraph separator."""


def is_usable(name: str) -> bool:
    """Return whether a name keeps the rule."""
    if len(name) > MAX_NAME_BYTES or printable(name) != name:
        return False
    # Surrogates, which UTF-8 cannot encode, are refused above.
    return len(name.encode()) <= MAX_NAME_BYTES


def printable(text: str) -> str:
    """Return a text with "?" for each character that no name may have."""
    return "".join("?" if unicodedata.category(letter) in _REFUSED else letter for letter in text)
