"""Every command that the guide names for `-o` takes it, in its short and its long form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cyclopts import App

from llamesh.cli.main import application

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
SUBCOMMANDS = ("ls", "list", "create", "update")


def _app(*words: str) -> App:
    found = application()
    for word in words:
        found = found[word]
    return found


def _named() -> list[tuple[str, ...]]:
    """The commands that the guide names, with the subcommands that list, create or update."""
    paragraph = GUIDE.read_text().split("These commands take `-o` (`--output`): ")[1].split(". `chat --json`")[0]
    alone, groups = paragraph.replace("(`json` only)", "").split("subcommands")
    found: list[tuple[str, ...]] = [(name,) for name in re.findall(r"`([a-z]+)`", alone)]
    for name in re.findall(r"`([a-z]+)`", groups):
        found += [(name, word) for word in SUBCOMMANDS if word in _app(name)]
    return found


@pytest.mark.parametrize("words", _named(), ids=" ".join)
def test_a_command_that_the_guide_names_takes_both_forms(words: tuple[str, ...]) -> None:
    names = {name for argument in _app(*words).assemble_argument_collection() for name in argument.names}
    assert {"-o", "--output"} <= names


def test_commands_and_subcommands_are_found_in_the_guide() -> None:
    assert {("env",), ("status",), ("downloads", "ls"), ("keys", "create"), ("users", "update")} <= set(_named())
