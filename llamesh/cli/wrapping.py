"""Text of a model on its way to a terminal: broken between words, and without anything that steers the terminal."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

_JOINERS = "\u200c\u200d"
"""Format characters that belong to words and emoji."""
_REFUSED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def safe(piece: str) -> str:
    """The text without control and format characters (escape sequences, changes of direction); line ends and tabs stay."""
    return "".join(
        letter
        for letter in piece
        if letter in "\n\t" or letter in _JOINERS or unicodedata.category(letter) not in _REFUSED
    )


class Wrapper:
    """Breaks a stream of text between words at a width in cells. A word is held back until it is whole."""

    def __init__(self, width: int) -> None:
        self._width = max(width, 10)
        self._column = 0
        self._spaces = 0
        self._word = ""

    def feed(self, piece: str) -> str:
        """What can be written after this piece has come."""
        out = []
        for letter in piece:
            if letter == "\n":
                out += [self._place(), "\n"]
                self._column = self._spaces = 0
            elif letter in " \t":
                out.append(self._place())
                self._spaces += 1 if letter == " " else 4
            elif cell_len(letter) > 1:
                # East Asian text may be broken between any two characters.
                out.append(self._place())
                self._word = letter
                out.append(self._place())
            else:
                self._word += letter
        return "".join(out)

    def flush(self) -> str:
        """What was held back."""
        return self._place()

    def _place(self) -> str:
        """The held word with the spaces before it, on a new line if it does not fit."""
        word, self._word = self._word, ""
        if not word:
            return ""
        out = ""
        length = cell_len(word)
        if self._column + self._spaces + length <= self._width:
            out = " " * self._spaces
            self._column += self._spaces
        elif self._column:
            out = "\n"
            self._column = 0
        self._spaces = 0
        while self._column + length > self._width:
            room = self._width - self._column
            out += f"{word[:room]}\n"
            word = word[room:]
            length, self._column = cell_len(word), 0
        self._column += length
        return out + word
