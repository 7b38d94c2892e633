"""What CONTRIBUTING.md and the decision records name exists: modules, files and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.house import ROOT

MODULE = re.compile(r"\b(?:services|controller|engine|llamesh)(?:\.[a-z_0-9]+)+\b")
FILE = re.compile(r"(?<![\w/.])(?:[a-z_]+/)+[a-z_0-9.-]*(?=[\s`),;:]|$)", re.MULTILINE)
TOP = (
    "proto",
    "llamesh",
    "services",
    "controller",
    "engine",
    "envoy",
    "tests",
    "benchmarks",
    "deploy",
    "docs",
    "examples",
    "tools",
)
OTHER_NAMES = ("llamesh.v1.", "llamesh.dev")
"""Names of messages, and the domain of manifests."""


def missing_modules(text: str) -> list[str]:
    """Dotted names that are neither a module, a package nor a name in one; tables of decision records name those of the database."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("| `"))
    return [name for name in MODULE.findall(prose) if not name.startswith(OTHER_NAMES) and not is_module(name)]


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or package, or a name that its module defines."""
    path = ROOT.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file() or path.is_dir():
        return True
    module, _, attribute = name.rpartition(".")
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return file.is_file() and re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")) is not None


def missing_files(text: str) -> list[str]:
    """Paths below a top folder that do not exist."""
    found = (name.rstrip(".") for name in FILE.findall(text))
    return [name for name in found if name.split("/")[0] in TOP and not (ROOT / name).exists()]


def test_the_map_and_the_flows_are_true() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert missing_modules(text) == []
    assert missing_files(text) == []
    assert len(set(MODULE.findall(text))) > 15, "the flows name their modules"


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda path: path.name)
def test_decision_records_name_files_that_exist(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    assert missing_modules(text) == []
    assert missing_files(text) == []


@pytest.mark.parametrize(
    "page", [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))], ids=lambda path: path.name
)
def test_prose_is_wrapped(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith("|")] == []


def test_missing_modules_and_files_are_found() -> None:
    assert missing_modules("`services.gateway.servicer` -> `services.gateway.nobody`") == ["services.gateway.nobody"]
    assert missing_files("`llamesh/kit/config.py`, `llamesh/kit/gone.py` and tests/unit/") == ["llamesh/kit/gone.py"]
