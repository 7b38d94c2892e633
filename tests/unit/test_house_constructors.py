"""A constructor has at most seven arguments: more are a sign of two parts. Exceptions hold the number of today and only shrink."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.unit.house import check_exceptions, name_of, product_files

MAX_ARGUMENTS = 7

CONSTRUCTORS: dict[str, int] = {
    "services/gateway/servicer.py GatewayServicer": 8,
}


def constructors(source: str) -> Iterator[tuple[str, int]]:
    """Classes with a constructor that is written by hand, and the number of its arguments."""
    for each in ast.walk(ast.parse(source)):
        if isinstance(each, ast.ClassDef):
            for method in each.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    arguments = method.args
                    named = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
                    yield each.name, named + sum(each is not None for each in (arguments.vararg, arguments.kwarg))


def test_constructors_have_at_most_seven_arguments() -> None:
    found = {
        f"{name_of(path)} {name}": number
        for path in product_files(".py")
        for name, number in constructors(path.read_text(encoding="utf-8"))
    }
    assert check_exceptions(found, MAX_ARGUMENTS, CONSTRUCTORS, "arguments") == []


def test_arguments_are_counted() -> None:
    source = """
class Outer:
    def __init__(self, a, /, b, *c, d=1, **e): ...
    def other(self, a, b, c, d, e, f, g, h): ...
    class Inner:
        def __init__(self): ...
"""
    assert dict(constructors(source)) == {"Outer": 5, "Inner": 0}
