"""Help of every command: sentences are whole, times are written as people type them, and no option is without a meaning."""

from __future__ import annotations

import re

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import COMMANDS, run
from llamesh.durations import seconds, written

Capture = pytest.CaptureFixture[str]
NAMES = [name for commands in COMMANDS.values() for name in commands]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no description needs a second line."""
    monkeypatch.setenv("COLUMNS", "5000")


def helped(name: str, capsys: Capture) -> str:
    """The help of a command."""
    assert run([name, "--help"]) == Exit.OK
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_no_description_is_broken_where_its_source_is(name: str, capsys: Capture) -> None:
    rows = [line for line in helped(name, capsys).splitlines() if line.startswith("│")]
    # A further line of a description has nothing in the column of names.
    assert not [row for row in rows if re.match(r"│ {6}.*[^ │]", row)]


@pytest.mark.parametrize("name", NAMES)
def test_no_option_empties_a_list_and_no_time_is_a_number(name: str, capsys: Capture) -> None:
    shown = helped(name, capsys)
    assert "--empty-" not in shown
    assert not re.search(r"TIME.*\[default: [0-9.]+\]", shown)
    assert shown.startswith("Usage: llamesh ")


def test_the_default_of_a_time_is_in_minutes(capsys: Capture) -> None:
    assert "[default: 10m]" in helped("run", capsys)


@pytest.mark.parametrize(
    ("length", "words"), [(600, "10m"), (5400, "1h30m"), (90, "1m30s"), (0.5, "0.5s"), (0, "0s"), (86400, "1d")]
)
def test_a_written_time_is_read_as_the_same(length: float, words: str) -> None:
    assert written(length) == words
    assert seconds(words) == length
