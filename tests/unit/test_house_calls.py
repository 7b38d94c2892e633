"""Some functions are called in one module only, which does what every caller must do around them."""

from __future__ import annotations

import ast

import pytest

from tests.unit.house import name_of, product_files


def callers(source: str, function: str) -> list[int]:
    """Lines that call a function, or with a dot before its name a method."""
    attribute = "attr" if function.startswith(".") else "id"
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if getattr(call.func, attribute, "") == function.removeprefix(".")]


@pytest.mark.parametrize(
    ("function", "below", "only"),
    [
        # `expanded` says in words which argument names a user that this machine does not have.
        (".expanduser", "", "llamesh/locations.py"),
        # `say` and `note` let nothing from outside steer the terminal.
        ("print", "llamesh/cli/", "llamesh/cli/printing.py"),
    ],
)
def test_a_function_is_called_in_one_module_only(function: str, below: str, only: str) -> None:
    files = {name_of(path): path.read_text(encoding="utf-8") for path in product_files(".py")}
    found = {name: callers(source, function) for name, source in files.items() if name.startswith(below)}
    assert {name: lines for name, lines in found.items() if lines and name != only} == {}
    assert found[only]


def test_calls_are_found() -> None:
    source = "print(1)\nx.print(2)\nprint\nprints(3)"
    assert (callers(source, "print"), callers(source, ".print")) == ([1], [2])
