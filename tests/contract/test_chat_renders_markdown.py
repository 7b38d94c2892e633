"""`llamesh chat` renders Markdown in a terminal that shows styles, and nowhere else. Golden screens at three widths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.markdown import BOLD, CODE, DIM, NORMAL, PLAIN
from tests.contract.patience import PATIENCE
from tests.contract.test_chat_against_a_fake import FakeInference, inference
from tests.terminal import terminal

__all__ = ["inference"]

ANSWER = """\
## Sorting lists

Python sorts in place with **list.sort** and returns a new list with `sorted`; both take a *key* function and keep the order of equals.

1. `sort` changes the list, returns nothing, and needs no memory for a second list.
- `sorted` takes anything that can be iterated.

```python
names.sort(key=lambda name: (len(name), name.casefold()), reverse=False)  # *stable*
```
> Timsort finds runs that are in order already, so nearly sorted lists are fast."""

CODE_LINE = "names.sort(key=lambda name: (len(name), name.casefold()), reverse=False)  # *stable*"
SCREENS = {
    60: [
        "Sorting lists",
        "",
        "Python sorts in place with list.sort and returns a new list",
        "with sorted; both take a key function and keep the order of",
        "equals.",
        "",
        "1. sort changes the list, returns nothing, and needs no",
        "   memory for a second list.",
        "\u2022 sorted takes anything that can be iterated.",
        "",
        "```python",
        CODE_LINE[:60],
        CODE_LINE[60:],
        "```",
        "\u2502 Timsort finds runs that are in order already, so nearly",
        "\u2502 sorted lists are fast.",
    ],
    80: [
        "Sorting lists",
        "",
        "Python sorts in place with list.sort and returns a new list with sorted; both",
        "take a key function and keep the order of equals.",
        "",
        "1. sort changes the list, returns nothing, and needs no memory for a second",
        "   list.",
        "\u2022 sorted takes anything that can be iterated.",
        "",
        "```python",
        CODE_LINE[:80],
        CODE_LINE[80:],
        "```",
        "\u2502 Timsort finds runs that are in order already, so nearly sorted lists are",
        "\u2502 fast.",
    ],
    120: [
        "Sorting lists",
        "",
        "Python sorts in place with list.sort and returns a new list with sorted; both take a key function and keep the order of",
        "equals.",
        "",
        "1. sort changes the list, returns nothing, and needs no memory for a second list.",
        "\u2022 sorted takes anything that can be iterated.",
        "",
        "```python",
        CODE_LINE,
        "```",
        "\u2502 Timsort finds runs that are in order already, so nearly sorted lists are fast.",
    ],
}


@pytest.fixture
def answer(inference: FakeInference) -> FakeInference:
    """An inference address that answers Markdown, a few letters at a time."""
    inference.said = [{"content": ANSWER[at : at + 3]} for at in range(0, len(ANSWER), 3)]
    return inference


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("columns", SCREENS)
def test_an_answer_on_the_screen(columns: int, tmp_path: Path) -> None:
    with terminal(["chat", "smol", "How?"], columns, {**os.environ, "LC_ALL": "C.UTF-8"}, tmp_path) as shown:
        assert shown.end() == Exit.OK
    assert shown.lines == SCREENS[columns]
    raw = shown.raw.decode()
    assert f"{BOLD}Sorting lists{NORMAL}" in raw
    assert f"{CODE}sorted{PLAIN}" in raw
    # Nothing is written twice: no cursor movement, no erased line.
    assert not re.search("\x1b\\[[0-9;?]*[A-HJKST]", raw)
    assert raw.count("Timsort") == 1


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_styles_shows_the_text_of_the_model(setting: dict[str, str], tmp_path: Path) -> None:
    with terminal(["chat", "smol", "How?"], 100, {**os.environ, "LC_ALL": "C.UTF-8"}, tmp_path, **setting) as shown:
        assert shown.end() == Exit.OK
    assert shown.lines[0] == "## Sorting lists"
    assert "\x1b" not in shown.raw.decode()


@pytest.mark.usefixtures("answer")
def test_on_a_pipe_the_answer_is_the_text_of_the_model(tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", "chat", "smol", "How?"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert asked.stdout.decode() == f"{ANSWER}\n"


def test_reasoning_is_dim_and_as_it_was_written(inference: FakeInference, tmp_path: Path) -> None:
    inference.said = [{"reasoning_content": "is it **so**"}, {"content": "**Yes**"}]
    with terminal(["chat", "smol", "How?"], 80, os.environ, tmp_path) as shown:
        assert shown.end() == Exit.OK
    assert shown.lines == ["is it **so**", "Yes"]
    assert f"{DIM}is it **so**{NORMAL}" in shown.raw.decode()


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("columns", SCREENS)
def test_a_conversation_on_the_screen(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with terminal(["chat", "smol"], columns, {**os.environ, "LC_ALL": "C.UTF-8"}, tmp_path) as shown:
        shown.until("Ctrl-D ends\n>")
        shown.type("How?\r")
        shown.until("fast.\n>")
        shown.type("/bye\r")
        assert shown.end() == Exit.OK
    hint = "talking to smol; /help lists commands, Ctrl-D ends"
    assert shown.lines == [hint, "> How?", *SCREENS[columns], "> /bye"]
