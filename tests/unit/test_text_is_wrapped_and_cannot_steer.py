"""The text of a model is broken between words at the width of the terminal, and no control character of it gets there."""

from __future__ import annotations

import random

import pytest
from rich.cells import cell_len

from llamesh.cli.wrapping import Wrapper, safe


def wrapped(text: str, width: int, *, pieces: int = 1) -> str:
    wrapper = Wrapper(width)
    return "".join(wrapper.feed(text[at : at + pieces]) for at in range(0, len(text), pieces)) + wrapper.flush()


def test_lines_end_between_words() -> None:
    assert wrapped("one two three four five", 10) == "one two\nthree four\nfive"


def test_line_ends_and_indentation_of_the_model_stay() -> None:
    assert wrapped("def f():\n    return 1\n\nend", 20) == "def f():\n    return 1\n\nend"


def test_wide_characters_count_twice_and_break_anywhere() -> None:
    assert wrapped("日本語日本語日本語", 10) == "日本語日本\n語日本語"


def test_a_word_that_is_too_long_is_broken() -> None:
    assert wrapped("x" * 25, 10) == "x" * 10 + "\n" + "x" * 10 + "\n" + "x" * 5


@pytest.mark.parametrize("width", [10, 60, 80, 120])
def test_no_line_is_wider_and_no_word_is_lost_however_the_text_comes(width: int) -> None:
    chance = random.Random(width)
    letters = "abc  \nd日本é"
    for _ in range(100):
        text = "".join(chance.choice(letters) for _ in range(200))
        whole = wrapped(text, width, pieces=len(text))
        assert wrapped(text, width, pieces=chance.randint(1, 7)) == whole
        assert all(cell_len(line) <= width for line in whole.split("\n"))
        assert "".join(whole.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\x1b[31mred\x07", "a[31mred"),
        ("\x9b2J", "2J"),
        ("abc\u202edef\u2066", "abcdef"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
        ("\u2028\x00\x7f\x08", ""),
    ],
)
def test_terminal_control_sequences_are_removed(said: str, shown: str) -> None:
    assert safe(said) == shown
