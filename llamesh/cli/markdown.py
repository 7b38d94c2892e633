"""Renders Markdown for a terminal while it arrives: headings, emphasis, code, lists, quotes and rules.

Line by line: the beginning of a line is held back until it says what the line is, and a span (`**bold**`) until its end has come. What has
been written is never written again, so nothing flickers and nothing is lost when the screen scrolls.

Invariant: no letter of the text is left out except the marks of what is rendered; a mark whose partner does not come on the same line
is shown as it is. Code blocks are shown letter for letter and are not wrapped, so that they can be copied.
"""

from __future__ import annotations

import re

from llamesh.cli.wrapping import Wrapper

BOLD, DIM, ITALIC, CODE = "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[36m"
UPRIGHT, NORMAL, PLAIN = "\x1b[23m", "\x1b[22m", "\x1b[39m"
MAX_SPAN = 200
"""Letters that are held back for the end of a span, and at the beginning of a line."""
MAX_RULE = 40
_STYLES = {1: (ITALIC, UPRIGHT), 2: (BOLD, NORMAL), 3: (BOLD + ITALIC, NORMAL + UPRIGHT)}
"""Escape sequences that begin and end an emphasis, by the number of its marks."""
_MARKS = "*_`\\"
_ESCAPABLE = "*_#`"
_UNDECIDED = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]*|`{1,2}|(?:`{3,}|~{3,})[^`]*|~{1,2}|[-+*][ \t]*|[-*_](?:[ ]*[-*_])*[ ]*|\d{1,9}(?:[.)][ \t]*)?|> ?)?"
)
"""Beginnings of a line that do not yet say what the line is."""
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`]*")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+")
_ITEM = re.compile(r"([ \t]*)([-+*]|\d{1,9}[.)])[ \t]+")
_QUOTE = re.compile(r" {0,3}> ?")
_INDENTED = re.compile(r"(?: {4}|\t)")


class Markdown:
    """Renders one answer. `feed` and `flush` are those of a `Wrapper`."""

    def __init__(self, width: int, *, drawn: bool = True) -> None:
        self._wrapper = Wrapper(width)
        self._bullet, self._bar, self._line = ("\u2022", "\u2502", "\u2500") if drawn else ("-", "|", "-")
        self._start: str | None = ""
        """The beginning of a line that is not decided; None after the decision."""
        self._fence = ""
        """The fence that began a code block; empty outside."""
        self._listing = False
        self._verbatim = False
        self._marked = True
        """Whether this line may have spans."""
        self._style = ""
        """The escape sequence of the whole line."""
        self._held = ""
        self._before = " "
        """The letter before those that are held."""

    def feed(self, piece: str) -> str:
        """Add a piece and return the text that can be written now."""
        return "".join(map(self._letter, piece))

    def flush(self) -> str:
        """Return the text held back, at the end of the answer."""
        out = "" if self._start is None else self._whole_line(self._start)
        return out + self._rest()

    def _letter(self, letter: str) -> str:
        if letter == "\n":
            out = self.flush()
            self._start, self._verbatim, self._marked, self._before = "", False, True, " "
            return out + self._wrapper.feed(letter)
        if self._start is None:
            return self._text(letter)
        self._start += letter
        return "" if self._is_undecided(self._start) else self._begin(self._start)

    def _is_undecided(self, start: str) -> bool:
        if len(start) > MAX_SPAN:
            return False
        return not start.strip().strip(self._fence[0]) if self._fence else bool(_UNDECIDED.fullmatch(start))

    def _whole_line(self, line: str) -> str:
        """Show a line that ended before it was decided: a fence, a rule, an empty line, or marks alone."""
        self._start = None
        words = line.strip()
        if self._fence:
            if words.startswith(self._fence):
                self._fence = ""
                return f"{DIM}{line}{NORMAL}"
            return line
        if fence := _FENCE.fullmatch(line):
            self._fence = fence[1]
            return f"{DIM}{line}{NORMAL}"
        if _RULE.fullmatch(line):
            return self._line * min(self._wrapper.width, MAX_RULE)
        return self._begin(line) if words else ""

    def _begin(self, line: str) -> str:
        """Show the beginning of a line by what the line is."""
        self._start = None
        if self._fence or (_INDENTED.match(line) and not self._listing):
            self._verbatim = True
            return line
        item, heading, quote = _ITEM.match(line), _HEADING.match(line), _QUOTE.match(line)
        self._listing = bool(item) or (self._listing and line[0] in " \t")
        self._marked = not line.lstrip().startswith("|")
        if item:
            mark = item[2] if item[2][0].isdigit() else self._bullet
            indent = item[1].replace("\t", "    ")
            return self._prefixed(f"{indent}{mark} ", " " * (len(indent) + len(mark) + 1), line[item.end() :])
        if quote:
            return self._prefixed(f"{self._bar} ", f"{self._bar} ", line[quote.end() :])
        if heading:
            self._style = BOLD
            self._wrapper.style(BOLD)
            return self._text(line[heading.end() :])
        indent = line[: len(line) - len(line.lstrip())].replace("\t", "    ")
        return self._prefixed(indent, indent, line.lstrip())

    def _prefixed(self, first: str, others: str, line: str) -> str:
        out = self._wrapper.feed(first)
        self._wrapper.hang(others)
        return out + self._text(line)

    def _text(self, words: str) -> str:
        if self._verbatim:
            return words
        if not self._marked:
            return self._wrapper.feed(words)
        self._held += words
        return self._resolve(ended=False)

    def _rest(self) -> str:
        """End the line: what is held, and the style of the line."""
        out = self._resolve(ended=True)
        if self._style:
            self._wrapper.style(NORMAL)
            self._style = ""
        return out + self._wrapper.flush()

    def _resolve(self, *, ended: bool) -> str:
        """Show the held text, as far as it is decided. `ended`: no more of this text comes."""
        out = []
        while self._held:
            plain = next((at for at, letter in enumerate(self._held) if letter in _MARKS), len(self._held))
            if plain:
                out.append(self._take(plain))
                continue
            run = len(self._held) - len(self._held.lstrip(self._held[0]))
            last = ended or len(self._held) > MAX_SPAN
            if run == len(self._held) and not last:
                break
            shown = self._span(run, ended=last)
            if shown is None:
                break
            out.append(shown)
        return "".join(out)

    def _span(self, run: int, *, ended: bool) -> str | None:
        """Show the span that the held text begins with, or its mark; None if that is not decided."""
        mark, after = self._held[0], self._held[run : run + 1]
        if mark == "\\":
            if run == 1 and after and after in _ESCAPABLE:
                self._held = self._held[1:]
                return self._take(1)
            return self._take(run)
        if mark != "`" and (run > max(_STYLES) or not after or after.isspace() or self._before.isalnum()):
            return self._take(run)
        end = _end(mark, run).search(self._held, run + 1)
        if end is None:
            return self._take(run) if ended else None
        if end.end() == len(self._held) and not ended:
            return None  # One more letter could belong to the mark.
        inner, rest = self._held[run : end.start()], self._held[end.end() :]
        on, off = (CODE, PLAIN) if mark == "`" else _STYLES[run]
        self._wrapper.style(on)
        if mark == "`":
            out = self._wrapper.feed(inner)
        else:
            self._held, self._before = inner, " "
            out = self._resolve(ended=True)
        self._wrapper.style(off + self._style)
        self._held, self._before = rest, mark
        return out

    def _take(self, count: int) -> str:
        """Show held letters as they are."""
        taken, self._held = self._held[:count], self._held[count:]
        self._before = taken[-1]
        return self._wrapper.feed(taken)


def _end(mark: str, run: int) -> re.Pattern[str]:
    """Return the pattern for the end of a span that begins with this number of marks."""
    one = re.escape(mark)
    if mark == "`":
        return re.compile(f"(?<!`)`{{{run}}}(?!`)")
    inside = r"(?!\w)" if mark == "_" else ""
    return re.compile(rf"(?<![\s\\{one}]){one}{{{run}}}(?!{one}){inside}")
