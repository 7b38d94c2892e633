"""Text files are UTF-8 in every locale: each read and write says so, without which Python before 3.15 takes the locale's encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.unit.house import name_of, product_files

_POSITION = {"read_text": 0, "write_text": 1}
"""Where the encoding stands among the arguments of these methods of `pathlib.Path`."""


def texts_without_encoding(source: str) -> Iterator[int]:
    """The lines that read or write a text file and do not name its encoding."""
    for each in ast.walk(ast.parse(source)):
        if not isinstance(each, ast.Call) or any(keyword.arg == "encoding" for keyword in each.keywords):
            continue
        called = each.func
        if isinstance(called, ast.Attribute) and called.attr in _POSITION:
            if len(each.args) <= _POSITION[called.attr]:
                yield each.lineno
        elif _opens_text(each):
            yield each.lineno


def _opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file of text: `open(path)`, or `path.open("a")` with a mode that is written out."""
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        modes = call.args[1:2]
        if not modes and not any(keyword.arg == "mode" for keyword in call.keywords):
            return True
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        modes = call.args[:1]
    else:
        return False
    modes += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    return any(
        isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwaxt+")
        for mode in modes
    )


def test_each_text_file_has_an_encoding() -> None:
    found = {
        name_of(path): lines
        for path in product_files(".py")
        if (lines := [*texts_without_encoding(path.read_text(encoding="utf-8"))])
    }
    assert found == {}


def test_reads_and_writes_without_encoding_are_found() -> None:
    source = """
path.read_text()
path.read_text("utf-8")
path.read_text(encoding="utf-8")
path.write_text(words)
path.write_text(words, "utf-8")
path.open("a")
path.open("ab")
open(path, mode="w")
open(path)
open(path, "w", encoding="utf-8")
store.open(key)
"""
    assert list(texts_without_encoding(source)) == [2, 5, 7, 9, 10]
