"""Markdown of a model is rendered while it comes: nothing is written twice, no word is broken, code is shown letter for letter."""

from __future__ import annotations

import random
import re

import pytest
from rich.cells import cell_len

from llamesh.cli.markdown import BOLD, CODE, DIM, ITALIC, MAX_SPAN, NORMAL, PLAIN, UPRIGHT, Markdown

STYLE = re.compile("\x1b\\[[0-9]+m")


def rendered(text: str, width: int = 40, *, pieces: int = 1, drawn: bool = True) -> str:
    shown = Markdown(width, drawn=drawn)
    return "".join(shown.feed(text[at : at + pieces]) for at in range(0, len(text), pieces)) + shown.flush()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("# Title\ntext", f"{BOLD}Title{NORMAL}\ntext"),
        ("a **bold** word", f"a {BOLD}bold{NORMAL} word"),
        ("an *italic* and _other_ word", f"an {ITALIC}italic{UPRIGHT} and {ITALIC}other{UPRIGHT} word"),
        ("***both***.", f"{BOLD}{ITALIC}both{NORMAL}{UPRIGHT}."),
        ("**a *b* c**", f"{BOLD}a {ITALIC}b{UPRIGHT} c{NORMAL}"),
        ("## See `a*b*c`", f"{BOLD}See {CODE}a*b*c{PLAIN}{BOLD}{NORMAL}"),
        ("``a`b``", f"{CODE}a`b{PLAIN}"),
        ("- one\n* two\n12. three", "\u2022 one\n\u2022 two\n12. three"),
        ("> said", "\u2502 said"),
        ("---", "\u2500" * 40),
        ("| a | *b* |", "| a | *b* |"),
    ],
)
def test_marked_text_is_styled(said: str, shown: str) -> None:
    assert rendered(said) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4 and 2*3*4",
        "snake_case_name and __init__.py's x_",
        "*args and **kwargs",
        "an open ` and an open **",
        "#hashtag, -5, 3.14 and >0",
        "\\(x\\) stays, C:\\dir too",
        "line **one\nline two**",
        "-",
        "1.",
        "#",
    ],
)
def test_text_that_only_looks_like_a_mark_stays(text: str) -> None:
    assert STYLE.sub("", rendered(text)).replace("__init__", "init") == text.replace("__init__", "init")


def test_an_escaped_mark_is_shown_alone() -> None:
    assert rendered("\\*not\\* italic") == "*not* italic"


def test_code_blocks_are_shown_letter_for_letter() -> None:
    code = (
        "```python\nlong = '" + "x" * 60 + "'  # *not* **marked**\n\n\t- indented\n- no item\n````not the end\n```\nend"
    )
    assert STYLE.sub("", rendered(code.replace("````not", "``not"))) == code.replace("````not", "``not")
    assert f"{DIM}```python{NORMAL}\n" in rendered(code)
    indented = "    for item in __all__:\n        *rest, last = item"
    assert rendered(indented) == indented


def test_a_line_of_code_is_shown_before_its_end() -> None:
    shown = Markdown(40)
    shown.feed("```\n")
    assert shown.feed("x = 1") == "x = 1"


def test_items_and_quotes_hang() -> None:
    assert rendered("- one two three four", 12) == "\u2022 one two\n  three four"
    assert rendered("> one two three four", 12) == "\u2502 one two\n\u2502 three four"


def test_a_terminal_without_these_characters_gets_others() -> None:
    assert rendered("- one\n> two\n---", 10, drawn=False) == f"- one\n| two\n{'-' * 10}"


def test_text_held_back_for_a_mark_is_bounded() -> None:
    shown = Markdown(80)
    words = "word " * (MAX_SPAN // 5 - 1)
    assert shown.feed(f"*{words}").strip() == ""
    assert shown.feed("word word").startswith("*word word")
    assert "-" * 300 in rendered("-" * 300, 1000)
    assert rendered("-" * 10**5, 80)


@pytest.mark.parametrize("width", [10, 60, 80, 120])
def test_no_letter_is_lost_no_line_is_wider_and_no_style_is_left_on(width: int) -> None:
    chance = random.Random(width)
    for _ in range(300):
        text = "".join(
            chance.choice(["a", "bc", " ", "  ", "\n", "*", "**", "_", "`", "# ", "- ", "> ", "1. ", "\u65e5"])
            for _ in range(60)
        )
        whole = rendered(text, width, pieces=len(text))
        assert rendered(text, width, pieces=chance.randint(1, 7)) == whole
        letters = re.compile("[^abc1\u65e5]")
        assert letters.sub("", STYLE.sub("", whole)) == letters.sub("", text)
        assert set(STYLE.findall(whole)) <= {BOLD, DIM, ITALIC, CODE, NORMAL, UPRIGHT, PLAIN}
        if "    " not in text and "```" not in text:
            assert all(cell_len(STYLE.sub("", line)) <= width for line in whole.split("\n"))
        on = {BOLD: NORMAL, ITALIC: UPRIGHT, CODE: PLAIN, DIM: NORMAL}
        for begin, end in on.items():
            assert whole.rfind(begin) <= whole.rfind(end)
