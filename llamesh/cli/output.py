"""Prints results: tables for people; JSON, YAML or names for programs. Standard output gets data only.

JSON: see `llamesh.cli.json_shape`; a list is an array, `[]` if it is empty. YAML of what a manifest can declare is a
manifest, which `llamesh apply -f` takes; all other YAML has the shape of the JSON. On a pipe a table is plain text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from llamesh.cli.printing import say

if TYPE_CHECKING:
    from google.protobuf.message import Message

GAP = 3
"""Characters between two columns in a terminal."""

Format = Literal["table", "wide", "json", "yaml", "name"]
Output = Annotated[Format, Parameter(name=("--output", "-o"), help="How to print.")]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    value: Callable[[Any], object]
    wide: bool = False
    """Only in `--output wide`."""
    spare: bool = False
    """Omitted if the terminal is too narrow for the whole table."""
    below: bool = False
    """Printed below the table if the terminal is too narrow for the whole table: a line for each value that is not empty."""


def show_list(items: Iterable[Message], output: Format, columns: Sequence[Column]) -> None:
    """Print a list. The first column is what `--output name` prints."""
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


def show_one(item: Message, output: Format, columns: Sequence[Column]) -> None:
    """Print one resource."""
    if output == "yaml" and is_declared(item):
        say(manifest(item))
    elif output in {"json", "yaml"}:
        say(document(plain(item), output))
    else:
        show_list([item], output, columns)


def is_declared(item: Message) -> bool:
    """Whether a manifest can declare such an object."""
    from llamesh.cli.manifest.holdings import kind_of

    return bool(kind_of(item))


def manifest(item: Message) -> str:
    """The document that declares an object, in YAML."""
    from llamesh.cli.manifest.export import declared

    return f"---\n{document(declared(item), 'yaml')}"


def show_table(items: Sequence[object], columns: Sequence[Column], *, keep: bool = False) -> None:
    """Print a table: with lines in a terminal, in plain columns elsewhere. `keep` leaves no column out."""
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        from rich.console import Console

        width = get_terminal_size().columns
        shown = columns if keep else fitting(items, columns, width)
        Console().print(table(items, shown, width))
        for words in below(items, columns, shown):
            say(wrapped(words, width))
        return
    for line in zip(*(_padded(cells) for cells in _cells(items, columns)), strict=True):
        say("  ".join(line).rstrip())


def table(items: Sequence[object], columns: Sequence[Column], width: int) -> Any:
    """The table as rich draws it. Titles are never broken, nor is what people copy, the first column, where it has room."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    cells = _cells(items, columns)
    rest = sum(len(column.title) for column in columns[1:]) + GAP * len(columns)
    whole = max(map(len, cells[0])) + rest <= width
    for number, column in enumerate(columns):
        drawn.add_column(column.title, overflow="fold", no_wrap=whole and number == 0, min_width=len(column.title))
    for row in items:
        # Names come from users: they are text, never markup.
        drawn.add_row(*(Text(text(column.value(row))) for column in columns))
    return drawn


def fitting(items: Sequence[object], columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit the terminal; spare columns are omitted if the table is too wide."""
    whole = _width(items, columns)
    return [column for column in columns if whole <= width or not (column.spare or column.below)]


def below(items: Sequence[object], columns: Sequence[Column], shown: Sequence[Column]) -> list[str]:
    """Return the lines below a table that shows some of its columns: the first cell of a row and a value that has no room."""
    omitted = [column for column in columns if column.below and column not in shown]
    found = [(row, column.value(row)) for row in items for column in omitted]
    return [f"{text(columns[0].value(row))}: {text(value)}" for row, value in found if value]


def wrapped(line: str, width: int, indent: int = 2) -> str:
    """Return a line broken between words at a width, its further lines indented."""
    from llamesh.cli.wrapping import Wrapper

    wrapper = Wrapper(width)
    wrapper.hang(" " * indent)
    return wrapper.feed(line) + wrapper.flush()


def _width(items: Sequence[object], columns: Sequence[Column]) -> int:
    return sum(max(map(len, cells)) for cells in _cells(items, columns)) + GAP * len(columns)


def _cells(items: Sequence[object], columns: Sequence[Column]) -> list[list[str]]:
    """Each column's title and cells."""
    return [[column.title, *(text(column.value(item)) for item in items)] for column in columns]


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
