"""What the checks of the house share: where the repository is and which files are written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("llamesh", "services", "controller", "engine", "envoy", "tools", "benchmarks")
GENERATED = ("llamesh/v1/", "llamesh/client/sync/")


def product_files(*suffixes: str) -> Iterator[Path]:
    """Modules that are written by hand; migrations, which are never changed once they are released, are left out."""
    for place in PRODUCT:
        for path in sorted((ROOT / place).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in suffixes and not name.startswith(GENERATED) and "/migrations/versions/" not in name:
                yield path


def test_files() -> Iterator[Path]:
    """Python files below tests/."""
    yield from sorted((ROOT / "tests").rglob("*.py"))


test_files.__test__ = False  # type: ignore[attr-defined]


def name_of(path: Path) -> str:
    """A path as exceptions name it."""
    return path.relative_to(ROOT).as_posix()


def check_exceptions(
    found: Mapping[str, int], limit: int, exceptions: Mapping[str, int], what: str = "lines"
) -> list[str]:
    """What is wrong: names beyond the limit or beyond their exception, and exceptions that are no longer needed."""
    wrong = [
        f"{name} has {size} {what}, at most {exceptions.get(name, limit)} are allowed: split it by noun"
        for name, size in found.items()
        if size > exceptions.get(name, limit)
    ]
    unneeded = [name for name in exceptions if found.get(name, 0) <= limit]
    return wrong + [f"{name} needs no exception any more: remove its entry" for name in unneeded]
