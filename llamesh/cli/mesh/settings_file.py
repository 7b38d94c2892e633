"""Edits the settings file of a home, `config.env`, as text.

Invariant: only the lines that change are written anew; comments and all other lines stay as a person wrote them. A line that is written
is read back as it was meant.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamesh.locations import expanded
from llamesh.private_files import write_private
from llamesh.text_files import NotTextError, read_text

LISTS = frozenset({"LLAMESH_IMPORT_DIRS"})
"""Settings with several paths, which commas separate."""
_LINE = re.compile(r"(?P<head>\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=[^\S\r\n]*)(?P<value>.*)", re.DOTALL)
"""A line that sets a value."""
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)
"""A value with quotation marks, up to the closing one, as the reader of the file finds it."""
_COMMENT = re.compile(r"\s#")
"""The beginning of a comment, with the last of the blanks before it. Backups are hostile: no pattern here takes quadratic time."""
_BEGINNING = r"(?<![^\s\"'=,:])"
"""Before a path: nothing, or what separates values and their parts."""
_END = r"(?=[/\"']|\s+#|\s*$)"
"""After the path of a folder: a path below it, or the end of the value. A comma and a colon may belong to the name of another folder."""
_END_IN_LIST = r"(?=[/\"',]|\s+#|\s*$)"
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\$\{")
"""What no line can express: control characters, bytes that are not UTF-8, and the beginning of a variable, which the reader replaces."""
_PLAIN = re.compile(r"[A-Za-z0-9/._~-]*")
"""A path that needs no other spelling in a URL."""


_PATH = re.compile(r"(?<=[\s\"'=,:])[/~][^\"',:\r\n]*")
"""An absolute path in a line, perhaps with what follows it."""
MAX_PATHS = 16
"""Further paths of a home that a backup names."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The names of the values that named the old place of a home."""

    changed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """Those that cannot hold the path of the new place."""


def with_values(content: str, values: Mapping[str, str]) -> str:
    """Return the content with these values in place of those that it had under the same names."""
    kept = [line for line in _lines(content) if _name(line) not in values]
    if kept and not kept[-1].endswith("\n"):
        kept.append("\n")
    return "".join([*kept, *(f"{name}={_quoted(value)}\n" for name, value in values.items())])


def can_hold(value: str) -> bool:
    """Whether the file can have a value."""
    return _UNWRITABLE.search(value) is None


def paths_of(home: Path, file: Path) -> list[str]:
    """Return every other path of the home that the settings use, and its real path. Symbolic links give a home several paths."""
    found = {os.path.realpath(home)}
    with suppress(OSError, NotTextError):
        for line in _lines(read_text(file)):
            for path in _PATH.findall(line):
                with suppress(OSError, ValueError):
                    whole = expanded(path)
                    found |= {str(each) for each in (whole, *whole.parents) if each.exists() and each.samefile(home)}
    return sorted(filter(_is_known, found - {str(home)}))[:MAX_PATHS]


def moved(content: str, old: Path, new: Path, others: Collection[str] = ()) -> tuple[str, Moved]:
    """Return the content for a home that is at another place, and the names of the values that named the old place.

    `others` are further paths of the old place.
    """
    lines, changed, left = [], [], []
    olds = [old, *map(Path, others)]
    for line in _lines(content):
        found = _LINE.fullmatch(line)
        value = _moved(found["name"].upper(), found["value"], olds, new) if found else None
        if found is None or value == found["value"]:
            lines.append(line)
        elif value is None:
            lines.append(line)
            left.append(found["name"].upper())
        else:
            lines.append(found["head"] + value)
            changed.append(found["name"].upper())
    return "".join(lines), Moved(tuple(changed), tuple(left))


def move(file: Path, old: str, new: Path, others: Sequence[str] = ()) -> Moved:
    """Change a file for a home that is at another place. `others` are further paths of the old place.

    The file and the old places may come from a hostile backup: what no mesh writes is left as it is.
    """
    if not isinstance(others, Sequence) or not all(map(_is_known, [old, *others])) or not file.exists():
        return Moved()
    try:
        content, found = moved(read_text(file), Path(old), new, others[:MAX_PATHS])
    except NotTextError:
        # `llamesh up` names the line.
        return Moved()
    if found.changed:
        write_private(file, content.encode())
    return found


def _is_known(old: object) -> bool:
    return isinstance(old, str) and old.isprintable() and len(Path(old).parts) > 1


def _lines(content: str) -> Iterable[str]:
    """Return the lines with their ends. Split only at line ends that dotenv knows; str.splitlines splits at more."""
    return io.StringIO(content, newline="")


def _name(line: str) -> str:
    found = _LINE.fullmatch(line)
    return found["name"].upper() if found else ""


def _moved(name: str, value: str, olds: Sequence[Path], new: Path) -> str | None:
    """Replace the path of the old home at the beginning of each path in a value. None if the value cannot hold the new path."""
    quote = value[:1] if value[:1] in {'"', "'"} else ""
    text, rest = _without_comment(value, quote)
    spellings = list(map(str, olds))
    with suppress(ValueError):
        user = expanded("~")
        spellings += [f"~/{old.relative_to(user)}" for old in olds if old.is_relative_to(user)]
    # At once and the longest first: the new place may lie below an old one, and an old one below another.
    any_old = "|".join(re.escape(_escaped(each, quote)) for each in sorted(spellings, key=len, reverse=True))
    pattern = f"{_BEGINNING}(?:{any_old}){_END_IN_LIST if name in LISTS else _END}"
    changed = re.sub(pattern, lambda _: _escaped(str(new), quote), text)
    if changed == text:
        return value
    separates = name in LISTS and "," in str(new)
    needs_encoding = "://" in text and not _PLAIN.fullmatch(str(new))
    if separates or needs_encoding or not can_hold(str(new)):
        return None
    ends_early = changed != changed.strip() or re.search(r"\s#", changed)
    return (_quoted(changed) if ends_early and not quote else changed) + rest


def _without_comment(value: str, quote: str) -> tuple[str, str]:
    """Split a value, which may begin with a quotation mark, into its text, and its comment with the end of the line."""
    if quote:
        quoted = _QUOTED.match(value)
        return (quoted.group(), value[quoted.end() :]) if quoted else (value, "")
    found = _COMMENT.search(value)
    text = value[: found.start() if found else len(value)].rstrip()
    return text, value[len(text) :]


def _quoted(value: str) -> str:
    return '"' + _escaped(value, '"') + '"'


def _escaped(value: str, quote: str) -> str:
    """Return the value as the file has it between these quotation marks; as it is without."""
    return value.replace("\\", "\\\\").replace(quote, f"\\{quote}") if quote else value
