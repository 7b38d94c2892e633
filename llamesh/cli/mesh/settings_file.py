"""Edits the settings file of a home, `config.env`, as text.

Invariant: only the lines that change are written anew; comments and all other lines stay as a person wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llamesh.locations import expanded
from llamesh.private_files import write_private

MAX_BYTES = 1 << 20
"""Bytes of a file whose paths are changed."""
_LINE = re.compile(r"(?P<head>\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=[^\S\r\n]*)(?P<value>.*)", re.DOTALL)
"""A line that sets a value."""
_BEGINNING = r"(?<![^\s\"'=,:])"
"""Before a path: nothing, or what separates values and their parts."""
_END = r"(?=[/\"',:]|\s+#|\s*$)"
"""After the path of a folder: a path below it, or what ends values and their parts."""


def with_values(content: str, values: Mapping[str, str]) -> str:
    """Return the content with these values in place of those that it had under the same names."""
    kept = [line for line in content.splitlines(keepends=True) if _name(line) not in values]
    if kept and not kept[-1].endswith("\n"):
        kept.append("\n")
    return "".join([*kept, *(f"{name}={_quoted(value)}\n" for name, value in values.items())])


def moved(content: str, old: Path, new: Path) -> tuple[str, list[str]]:
    """Return the content for a home that is at another place, and the names of the values that named the old place."""
    lines, names = [], []
    for line in content.splitlines(keepends=True):
        found = _LINE.fullmatch(line)
        changed = found["head"] + _moved(found["value"], old, new) if found else line
        if found and changed != line:
            names.append(found["name"].upper())
        lines.append(changed)
    return "".join(lines), names


def move(file: Path, old: str, new: Path) -> list[str]:
    """Change a file for a home that is at another place. Return the names of the changed values.

    The file and the old place may come from a hostile backup: what no mesh writes is left as it is.
    """
    known = isinstance(old, str) and old.isprintable() and len(Path(old).parts) > 1
    if not known or not file.exists() or file.stat().st_size > MAX_BYTES:
        return []
    try:
        content, names = moved(file.read_bytes().decode(), Path(old), new)
    except UnicodeDecodeError:
        # `llamesh up` names the line.
        return []
    if names:
        write_private(file, content.encode())
    return names


def _name(line: str) -> str:
    found = _LINE.fullmatch(line)
    return found["name"].upper() if found else ""


def _moved(value: str, old: Path, new: Path) -> str:
    """Replace the path of the old home at the beginning of each path in a value."""
    quote = value[:1] if value[:1] in {'"', "'"} else ""
    spellings = [str(old)]
    with suppress(ValueError):
        user = expanded("~")
        if old.is_relative_to(user):
            spellings.append(f"~/{old.relative_to(user)}")
    for spelling in spellings:
        pattern = _BEGINNING + re.escape(_escaped(spelling, quote)) + _END
        value = re.sub(pattern, lambda _: _escaped(str(new), quote), value)
    return value


def _quoted(value: str) -> str:
    return '"' + _escaped(value, '"') + '"'


def _escaped(value: str, quote: str) -> str:
    """Return the value as the file has it between these quotation marks; as it is without."""
    return value.replace("\\", "\\\\").replace(quote, f"\\{quote}") if quote else value
