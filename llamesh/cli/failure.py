"""How a command fails: what it prints and the exit code. An error is cause, parts and hint (docs: exit codes are a contract)."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Exit(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_SIGNED_IN = 4
    REFUSED = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command: `error: cause`, its parts indented, `hint: what to do`."""

    def __init__(self, cause: str, *, parts: Sequence[str] = (), hint: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(cause)
        self.cause = cause
        self.parts = tuple(parts)
        self.hint = hint
        self.code = code

    def render(self) -> str:
        """The text for standard error."""
        lines = [f"error: {self.cause}", *(f"  {part}" for part in self.parts)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)
