"""Prints results: tables for people; JSON, YAML or names for programs. Standard output gets data only.

In a terminal, `llamesh.cli.terminal_table` lays a table out.
JSON: see `llamesh.cli.json_shape`; a list is an array, `[]` if it is empty. YAML of what a manifest can declare is a
manifest, which `llamesh apply -f` takes; all other YAML has the shape of the JSON. On a pipe a table is plain text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from llamesh.cli.printing import say

if TYPE_CHECKING:
    from google.protobuf.message import Message

Format = Literal["table", "wide", "json", "yaml", "name"]
Output = Annotated[
    Format,
    Parameter(
        name=("--output", "-o"),
        help="How to print. wide has all columns; in a terminal that is too narrow for them, one block of lines for each item.",
    ),
]
MAX_REASON = 60
"""Maximum number of characters of a reason in a list."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    value: Callable[[Any], object]
    wide: bool = False
    """Only in `--output wide`."""
    spare: bool = False
    """Omitted if the terminal has no room for it; the command says so."""
    below: bool = False
    """Printed below the table if the terminal is too narrow for the whole table: a line for each value that is not empty."""
    most: int = 0
    """Maximum number of characters of a value in a list, 0 for no limit; `--output wide` and a single item have the whole value."""

    def cell(self, item: object) -> str:
        """Return the text of a cell."""
        return text(self.value(item))

    def shortened(self) -> Column:
        """Return the column with values of `most` characters."""
        return replace(self, value=lambda item: shortened(text(self.value(item)), self.most)) if self.most else self


def show_list(items: Iterable[Message], output: Format, columns: Sequence[Column]) -> None:
    """Print a list. The first column is what `--output name` prints."""
    _show(items, output, columns if output == "wide" else [column.shortened() for column in columns])


def show_one(item: Message, output: Format, columns: Sequence[Column]) -> None:
    """Print one resource."""
    if output in {"json", "yaml"} and not (output == "yaml" and is_declared(item)):
        say(document(plain(item), output))
    else:
        _show([item], output, columns)


def _show(items: Iterable[Message], output: Format, columns: Sequence[Column]) -> None:
    found = list(items)
    if output == "yaml" and all(is_declared(item) for item in found):
        for item in found:
            say(manifest(item))
    elif output in {"json", "yaml"}:
        say(document([plain(item) for item in found], output))
    elif output == "name":
        for item in found:
            say(str(columns[0].value(item)))
    else:
        show_table(found, [column for column in columns if output == "wide" or not column.wide], keep=output == "wide")


def is_declared(item: Message) -> bool:
    """Whether a manifest can declare such an object."""
    from llamesh.cli.manifest.holdings import kind_of

    return bool(kind_of(item))


def manifest(item: Message) -> str:
    """The document that declares an object, in YAML."""
    from llamesh.cli.manifest.export import declared

    return f"---\n{document(declared(item), 'yaml')}"


def show_table(items: Sequence[object], columns: Sequence[Column], *, keep: bool = False) -> None:
    """Print a table: as `terminal_table` lays it out in a terminal, in plain columns elsewhere. `keep` leaves no column out."""
    if sys.stdout.isatty():
        from llamesh.cli.terminal_table import show_in_terminal

        show_in_terminal(items, columns, keep=keep)
        return
    for line in zip(*(_padded(cells) for cells in cells_of(items, columns)), strict=True):
        say("  ".join(line).rstrip())


def cells_of(items: Sequence[object], columns: Sequence[Column]) -> list[list[str]]:
    """Return each column's title and cells."""
    return [[column.title, *(column.cell(item) for item in items)] for column in columns]


def _padded(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def plain(message: Message) -> dict[str, Any]:
    """A message as `-o json` shows it."""
    from llamesh.cli.json_shape import shaped

    return shaped(message)


def show_json_line(message: Message) -> None:
    """Print one object of a stream on one line."""
    say(json.dumps(plain(message)))


def text(value: object) -> str:
    """Return the text of a cell, without characters that control the terminal."""
    shown = "-" if value in ("", None) else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in shown)


def shortened(words: str, most: int) -> str:
    """Return a text of at most so many characters; one that was longer is cut between words and ends in three dots."""
    if len(words) <= most:
        return words
    cut = words[: most - 3]
    whole = cut.rpartition(" ")[0]
    # A word that is half of the text, such as an address, is cut itself.
    return (whole if len(whole) > most // 2 else cut).rstrip(" ,;:.") + "..."


def size(count: int) -> str:
    """Bytes for people."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def word(enum: Any, value: int, prefix: str) -> str:
    """An enum's value without its prefix; a newer mesh's unknown value as its number."""
    found = enum.DESCRIPTOR.values_by_number.get(value)
    return found.name.removeprefix(prefix) if found else str(value)


def when(timestamp: Any) -> str:
    """Format a time for people, in UTC; empty if it is not set."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%S}Z" if timestamp.seconds else ""


def document(value: object, output: Format) -> str:
    """Format a JSON value as JSON or YAML."""
    return json.dumps(value, indent=2) if output == "json" else "\n".join(_yaml(value))


def _yaml(value: object) -> list[str]:
    """Format a JSON value as block YAML."""
    if isinstance(value, dict) and value:
        lines: list[str] = []
        for key, item in value.items():
            nested = _yaml(item)
            if isinstance(item, dict | list) and item:
                lines += [f"{key}:", *(f"  {line}" for line in nested)]
            else:
                lines.append(f"{key}: {nested[0]}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            first, *rest = _yaml(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        return lines
    return [_quoted(value) if isinstance(value, str) else json.dumps(value)]


def _quoted(text: str) -> str:
    """A string as in JSON, except that YAML has no surrogate pairs."""
    return '"' + "".join(json.dumps(one)[1:-1] if one <= "\uffff" else f"\\U{ord(one):08x}" for one in text) + '"'
