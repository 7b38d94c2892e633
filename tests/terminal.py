"""A terminal for tests: a command in a pty, and the screen as an emulator (pyte) draws it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
import pyte

ROWS = 40


class Terminal:
    """A command that runs in a terminal of so many columns."""

    def __init__(
        self, arguments: Sequence[str], columns: int, environment: Mapping[str, str], cwd: Path | None, **more: str
    ) -> None:
        self.process = pexpect.spawn(
            sys.executable,
            ["-P", "-m", "llamesh.cli.main", *arguments],
            env={**environment, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(ROWS), **more},
            cwd=str(cwd) if cwd else None,
            dimensions=(ROWS, columns),
            encoding=None,
            timeout=30,
        )
        self.raw = b""
        """Every byte that the command has written."""
        self._screen = _Screen(columns, ROWS, self.process)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """The screen from its first line to its last line that is not empty, without spaces at the ends."""
        # A cell of a wide character is followed by one that is empty.
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def until(self, words: str, seconds: float = 60.0) -> list[str]:
        """Read until the screen shows the words."""
        deadline = time.monotonic() + seconds
        while words not in "\n".join(self.lines):
            assert time.monotonic() < deadline, f"waited in vain for {words!r}:\n" + "\n".join(self.lines)
            assert self._read(), f"it ended without {words!r}:\n" + "\n".join(self.lines)
        return self.lines

    def type(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys.encode())

    def end(self, seconds: float = 60.0) -> int:
        """Read until the command ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, "it does not end:\n" + "\n".join(self.lines)
        self.process.wait()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -1)

    def _read(self) -> bool:
        """Take what has come within a moment; False after the end."""
        try:
            content = self.process.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += content
        self._stream.feed(content)
        return True


class _Screen(pyte.Screen):
    """Answers what a program asks its terminal, for instance where the cursor is."""

    def __init__(self, columns: int, rows: int, process: pexpect.spawn[bytes]) -> None:
        super().__init__(columns, rows)
        self._process = process

    def write_process_input(self, data: str) -> None:
        """Send an answer of the terminal to the program."""
        with suppress(OSError):
            self._process.send(data.encode())


@contextmanager
def terminal(
    arguments: Sequence[str], columns: int, environment: Mapping[str, str], cwd: Path | None = None, **more: str
) -> Iterator[Terminal]:
    """A command in a terminal for a `with` block; it ends with the block. `more` goes before the environment, for instance TERM."""
    opened = Terminal(arguments, columns, environment, cwd, **more)
    try:
        yield opened
    finally:
        opened.process.close(force=True)
