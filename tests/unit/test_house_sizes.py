"""Modules are short enough to be read at once. Exceptions hold the size of today and only shrink."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.unit.house import check_exceptions, name_of, product_files, test_files

MODULE_LINES = 300
TEST_LINES = 399

MODULES: dict[str, int] = {}
TESTS: dict[str, int] = {}


def lines(files: Iterable[Path]) -> dict[str, int]:
    """Number of lines by name."""
    return {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}


def test_modules_have_at_most_300_lines() -> None:
    assert check_exceptions(lines(product_files(".py", ".lua")), MODULE_LINES, MODULES) == []


def test_test_files_have_fewer_than_400_lines() -> None:
    assert check_exceptions(lines(test_files()), TEST_LINES, TESTS) == []


def test_a_file_that_grows_is_named() -> None:
    found = {"a.py": 301, "b.py": 401, "c.py": 300}
    wrong = check_exceptions(found, 300, {"b.py": 400})
    assert [line.split()[0] for line in wrong] == ["a.py", "b.py"]


def test_an_exception_that_is_no_longer_needed_is_named() -> None:
    wrong = check_exceptions({"a.py": 300}, 300, {"a.py": 400, "gone.py": 500})
    assert [line.split()[0] for line in wrong] == ["a.py", "gone.py"]
