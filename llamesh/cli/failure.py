"""Failures of commands: what they print, and the exit code. An error has a cause, parts and a hint.

Exit codes are a contract: docs/reference/exit-codes.md, which is generated from this module.
"""

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


MEANINGS = {
    Exit.OK: "The command did what was asked, or nothing had to be done.",
    Exit.FAILED: "The command failed for another reason than those below, or several names failed for different reasons.",
    Exit.USAGE: "The command line, the form of an address, a file or a setting is wrong: a person must correct it.",
    Exit.NOT_FOUND: "What was named is not there: a model, a server, a download, a job, a file.",
    Exit.NOT_SIGNED_IN: "There is no valid token: `llamesh login`.",
    Exit.REFUSED: "A right, a limit or a rule forbids it.",
    Exit.UNAVAILABLE: "The mesh, one of its parts or a source does not answer, or a wait took too long. A repeat may succeed.",
    Exit.INTERRUPTED: "Ctrl-C ended the command.",
}
"""What each exit code says, for docs/reference."""
BY_CODE = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "UNAUTHENTICATED": Exit.NOT_SIGNED_IN,
    "PERMISSION_DENIED": Exit.REFUSED,
    "RESOURCE_EXHAUSTED": Exit.REFUSED,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
}
"""Exit codes of gRPC codes; all others have FAILED."""
REFUSALS = {
    "DOES_NOT_FIT",
    "DOWNLOAD_ENDED",
    "DOWNLOAD_NOT_ENDED",
    "MODEL_IN_USE",
    "MODEL_NAME_TAKEN",
    "CONTRACT_IN_USE",
    "LAST_ADMINISTRATOR",
    "PLACEMENT_NEEDS_KUBERNETES",
}
"""Reasons with the exit code of a refusal by a rule, whatever their gRPC code."""
LACKS_A_PART = {"QUANT_NOT_CONFIGURED"}
"""Reasons with the exit code of a mesh in which nobody answers, because a part of it was not started."""
_WRONG_FORMS = {"form", "absolute path", "file URL", "url"}
"""Rules that a source breaks by its form alone: it is misused, and no setting allows it."""
_CODE_OF_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def exit_of(code: str, reason: str = "", rule: str = "") -> Exit:
    """The exit code for a gRPC code, a reason of the contract and the rule of the reason."""
    if reason == "SOURCE_REFUSED" and rule in _WRONG_FORMS:
        return Exit.USAGE
    if reason in LACKS_A_PART:
        return Exit.UNAVAILABLE
    return Exit.REFUSED if reason in REFUSALS else BY_CODE.get(code, Exit.FAILED)


def exit_of_http(status: int, reason: str = "", rule: str = "") -> Exit:
    """The exit code for an HTTP status: that of the corresponding gRPC code, of the reason and of its rule."""
    return exit_of(_CODE_OF_HTTP.get(status, ""), reason, rule)


class CommandError(Exception):
    """Ends a command: `error: cause`, its parts indented, `hint: what to do`."""

    def __init__(self, cause: str, *, parts: Sequence[str] = (), hint: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(cause)
        self.cause = cause
        self.parts = tuple(parts)
        self.hint = hint
        self.code = code

    def render(self) -> str:
        """Return the text for standard error, without characters that control the terminal."""
        lines = [f"error: {self.cause}", *(f"  {part}" for part in self.parts)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return visible("\n".join(lines))


def visible(words: str) -> str:
    """Return the text with an escape for every character that controls a terminal. Line ends stay."""
    if words.replace("\n", "").isprintable():
        return words
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in words
    )


def unforeseen(error: Exception) -> CommandError:
    """Describe an unexpected exception. The user can fix a failure of the system; any other is reported as a defect."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return CommandError(f"{place}{error.strerror}")
    if isinstance(error, EOFError):
        return CommandError("the input ended before everything was answered", code=Exit.USAGE)
    if isinstance(error, UnicodeEncodeError):
        hint = "give it in UTF-8, in a terminal and a locale that use it: LC_ALL=C.UTF-8"
        return CommandError(f"{error.object!r} cannot be sent: it is not UTF-8", hint=hint, code=Exit.USAGE)
    if isinstance(error, ValueError | OverflowError):
        return CommandError(str(error), hint="correct the value; LLAMESH_LOG_LEVEL=debug shows where", code=Exit.USAGE)
    return CommandError(
        f"{type(error).__name__}: {error}", hint="this is a defect of llamesh; LLAMESH_LOG_LEVEL=debug shows where"
    )
