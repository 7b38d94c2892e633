"""Wraps a model's text between words for a terminal, and removes characters that control the terminal."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

ESCAPE = "\x1b"
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
        self.width = max(width, 10)
        self._column = 0
        self._spaces = 0
        self._word: list[str] = []
        self._hang = ""

    def feed(self, piece: str) -> str:
        """Add a piece and return the text that can be written now."""
        out = []
        for letter in piece:
            if letter == "\n":
                out += [self._place(), "\n"]
                self._column = self._spaces = 0
                self._hang = ""
            elif letter in " \t":
                out.append(self._place())
                self._spaces += 1 if letter == " " else 4
            elif cell_len(letter) > 1:
                # East Asian text may be broken between any two characters.
                out.append(self._place())
                self._word = [letter]
                out.append(self._place())
            else:
                self._word.append(letter)
        return "".join(out)

    def style(self, sequence: str) -> None:
        """Put an escape sequence, which takes no room, at this place of the text."""
        self._word.append(sequence)

    def hang(self, prefix: str) -> None:
        """Begin the further lines of this paragraph with a prefix. A prefix that leaves too little room is not used."""
        self._hang = prefix if cell_len(prefix) <= self.width // 2 else ""

    def flush(self) -> str:
        """Return the text held back."""
        return self._place()

    def _place(self) -> str:
        """The held word with the spaces before it, on a new line if it does not fit."""
        word, self._word = self._word, []
        cells = [0 if piece[0] == ESCAPE else cell_len(piece) for piece in word]
        if not any(cells):
            return "".join(word)
        out = []
        hang = cell_len(self._hang)
        if self._column + self._spaces + sum(cells) <= self.width or self._column + self._spaces <= hang:
            out.append(" " * self._spaces)
            self._column += self._spaces
        elif self._column:
            out.append(f"\n{self._hang}")
            self._column = hang
        self._spaces = 0
        for piece, length in zip(word, cells, strict=True):
            if self._column + length > self.width:
                out.append(f"\n{self._hang}")
                self._column = hang
            out.append(piece)
            self._column += length
        return "".join(out)
