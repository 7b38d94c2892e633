"""Finds mistakes in the sources of settings: invalid lines of the file, and names in the environment that nothing reads.

Invariant: no line of the file is ignored silently, and no value is shown, because it may be a secret.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from llamesh.names import LIFELINE
from llamesh.nearest import nearest
from llamesh.text_files import NotTextError, read_text

ENCODING = "utf-8-sig"
"""UTF-8 with or without a byte order mark, which some editors write."""

ENVIRONMENT_ONLY = frozenset(
    {
        "ENVOY_BIN",
        "LLAMESH_CA",
        "LLAMESH_CONFIG",
        "LLAMESH_CONTEXT",
        "LLAMESH_HOME",
        "LLAMESH_INFERENCE_URL",
        LIFELINE,
        "LLAMESH_TOKEN",
        "LLAMESH_URL",
    }
)
"""Variables of programs that do not read the file: the command and the supervisor."""

_PREFIX = "LLAMESH_"
_LIKENESS = 0.7
"""Similarity, from 0 to 1, from which a known name is suggested."""


def unknown_variables(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Return one sentence for each variable with the prefix LLAMESH_ that is not a setting."""
    return [
        f"{name} is not a setting and is ignored{_nearest(name, {*known, *ENVIRONMENT_ONLY})}"
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX) and name.upper() not in {*known, *ENVIRONMENT_ONLY}
    ]


def wrong_lines(file: Path, known: Collection[str]) -> list[str]:
    """Return one sentence for each invalid line of the file, or one for an unreadable file. A missing file has no lines."""
    try:
        content = read_text(file)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [f"{file} cannot be read: {error.strerror}"]
    except NotTextError as error:
        return [str(error)]
    wrong = []
    seen: dict[str, int] = {}
    for item in parse_stream(io.StringIO(content, newline=None)):
        text = item.original.string
        # The parser counts blank lines before an entry as part of it.
        line = item.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        problem = _problem(item.key, item.value, item.error, seen, known)
        if problem:
            wrong.append(f"line {line} of {file}: {problem}")
        if item.key is not None:
            seen.setdefault(item.key.upper(), line)
    return wrong


_OF_DATABASE_URL = ("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_HOST", "POSTGRES_PORT")
"""Variables of the reference deployment's Secret that one setting replaces."""


def _problem(
    key: str | None, value: str | None, malformed: bool, seen: Mapping[str, int], known: Collection[str]
) -> str:
    if malformed or (key is not None and value is None):
        return "it is not NAME=value; comments begin with #, and quotes must be closed"
    if key is None:
        return ""
    name = key.upper()
    if name in ENVIRONMENT_ONLY:
        return f"{name} is read from the environment only: set it there"
    if name in _OF_DATABASE_URL:
        return f"{name} is not a setting: DATABASE_URL contains it (postgresql://USER:PASSWORD@HOST:5432/NAME)"
    if name not in known:
        return f"{key} is not a setting{_nearest(key, known)}"
    if name in seen:
        return f"{name} is already set on line {seen[name]}: keep one"
    return ""


def _nearest(name: str, known: Collection[str]) -> str:
    # Most names share the prefix, so it is left out of the comparison.
    by_end = {item.removeprefix(_PREFIX): item for item in sorted(known, key=len, reverse=True)}
    meant = nearest(name.upper().removeprefix(_PREFIX), by_end, _LIKENESS)
    return f": did you mean {by_end[meant]}?" if meant else ": docs/reference/settings.md lists all"
