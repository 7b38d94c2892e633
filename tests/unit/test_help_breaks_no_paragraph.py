"""Help prints the line ends of a docstring: each paragraph of a command's description is one line, which the terminal wraps."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from llamesh.cli.main import COMMANDS
from tests.unit.house import ROOT

_OF_MAIN = {path for commands in COMMANDS.values() for path, _ in commands.values()}


def _descriptions() -> Iterator[tuple[str, str]]:
    """Yield the name of each command and the paragraphs of its docstring before the parameters."""
    for path in sorted((ROOT / "llamesh" / "cli").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                is_command = any(".command" in ast.unparse(item) for item in node.decorator_list)
                if is_command or f"llamesh.cli.{path.stem}:{node.name}" in _OF_MAIN:
                    yield f"{path.stem}:{node.name}", (ast.get_docstring(node) or "").partition("Parameters\n---")[0]


def test_each_paragraph_of_a_description_is_one_line() -> None:
    found = dict(_descriptions())
    assert len(found) > 50
    assert {name for name, words in found.items() if any("\n" in each for each in words.strip().split("\n\n"))} == set()
