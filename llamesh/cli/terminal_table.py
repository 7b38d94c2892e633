"""Lays a table out for the width of a terminal.

A table that is too wide first gives up its `below` columns, whose values are printed below it, then its `spare` columns, the widest first.
Then its cells are broken between words. If a word would not fit, or a list with all columns (`-o wide`) is too wide, each item is a block:
one line for each value.

Invariant: no word is broken, and what is not shown is named.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Any

from rich.cells import cell_len

from llamesh.cli.output import Column, cells_of, text
from llamesh.cli.printing import note, say
from llamesh.cli.wrapping import Wrapper

GAP = 3
"""Characters between two columns."""


def show_in_terminal(items: Sequence[object], columns: Sequence[Column], *, keep: bool = False) -> None:
    """Print a table as wide as the terminal. `keep` leaves no column out."""
    from rich.console import Console

    width = get_terminal_size().columns
    shown = list(columns) if keep else fitting(items, columns, width)
    if not _has_room(items, shown, width, whole=keep):
        say(blocks(items, columns, width))
        return
    Console().print(table(items, shown, width))
    for words in below(items, columns, shown):
        say(wrapped(words, width))
    if missing := omitted(items, columns, shown):
        note(f"no room for {', '.join(missing)}: `-o wide` has all columns")


def table(items: Sequence[object], columns: Sequence[Column], width: int) -> Any:
    """Return the table as rich draws it. A terminal that has no room for words breaks them, never titles."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, room in zip(columns, _widths(items, columns, width), strict=True):
        drawn.add_column(column.title, overflow="fold", width=room)
    for item in items:
        # Names come from users: they are text, never markup.
        drawn.add_row(*(Text(column.cell(item)) for column in columns))
    return drawn


def fitting(items: Sequence[object], columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that a table of a width has: all, or those that it must have and the narrowest spare ones that have room."""
    if _natural(items, columns) <= width:
        return list(columns)
    shown = [column for column in columns if not (column.spare or column.below)]
    for spare in sorted((column for column in columns if column.spare), key=lambda column: _natural(items, [column])):
        with_it = [column for column in columns if column in shown or column is spare]
        if _natural(items, with_it) <= width:
            shown = with_it
    return shown


def below(items: Sequence[object], columns: Sequence[Column], shown: Sequence[Column]) -> list[str]:
    """Return the lines below a table that shows some of its columns: the first cell of a row and a value that has no room."""
    hidden = [column for column in columns if column.below and column not in shown]
    found = [(item, column.value(item)) for item in items for column in hidden]
    return [f"{columns[0].cell(item)}: {text(value)}" for item, value in found if value]


def omitted(items: Sequence[object], columns: Sequence[Column], shown: Sequence[Column]) -> list[str]:
    """Return the titles of the columns that are neither in the table nor below it, though they have a value."""
    hidden = [column for column in columns if not column.below and column not in shown]
    return [column.title for column in hidden if any(column.value(item) not in ("", None) for item in items)]


def blocks(items: Sequence[object], columns: Sequence[Column], width: int) -> str:
    """Return a block of lines for each item: titles and values; those that are empty are left out. A long word runs over the edge."""
    margin = max(len(column.title) for column in columns) + 2

    def line(column: Column, item: object) -> str:
        return textwrap.fill(
            column.cell(item),
            width,
            initial_indent=f"{column.title:<{margin}}",
            subsequent_indent=" " * margin,
            break_long_words=False,
            break_on_hyphens=False,
        )

    return "\n\n".join(
        "\n".join(line(column, item) for column in columns if column.value(item) not in ("", None)) for item in items
    )


def wrapped(line: str, width: int, indent: int = 2) -> str:
    """Return a line broken between words at a width, its further lines indented."""
    wrapper = Wrapper(width)
    wrapper.hang(" " * indent)
    return wrapper.feed(line) + wrapper.flush()


def _has_room(items: Sequence[object], columns: Sequence[Column], width: int, *, whole: bool) -> bool:
    """Return whether a table needs to break no word, or, with `whole`, no cell. One without items is its titles."""
    needed = _natural(items, columns) if whole else sum(_least(items, columns)) + _between(columns)
    return not items or needed <= width


def _natural(items: Sequence[object], columns: Sequence[Column]) -> int:
    return sum(max(map(cell_len, cells)) for cells in cells_of(items, columns)) + _between(columns)


def _between(columns: Sequence[Column]) -> int:
    """Return the characters that are not of a column: between them, and one at each edge."""
    return GAP * (len(columns) - 1) + 2


def _least(items: Sequence[object], columns: Sequence[Column]) -> list[int]:
    """Return the width of each column in which no word is broken. The first column is what people copy: it is not broken at all."""
    first, *others = cells_of(items, columns)
    words = [[title, *(word for cell in cells for word in cell.split())] for title, *cells in others]
    return [max(map(cell_len, cells)) for cells in [first, *words]]


def _widths(items: Sequence[object], columns: Sequence[Column], width: int) -> list[int]:
    """Return the width of each column: the widest give way, first between their words, then down to their titles, the first one last."""
    least, titles = _least(items, columns), [len(column.title) for column in columns]
    widths = [max(map(cell_len, cells)) for cells in cells_of(items, columns)]
    for floors in (least, [least[0], *titles[1:]], titles):
        while sum(widths) + _between(columns) > width:
            wider = [number for number, room in enumerate(widths) if room > floors[number]]
            if not wider:
                break
            widths[max(wider, key=widths.__getitem__)] -= 1
    return widths
