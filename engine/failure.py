"""Reasons why an engine does not run, with an exit code for programs and a sentence with a remedy for people.

Invariant: every failure of an engine has exactly one `FailureReason`, one exit code and one sentence with a remedy.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence

from llamesh.processes import signal_name


class FailureReason(enum.Enum):
    """Reason of a failure. The value is the exit code of `python -m engine` (a code of sysexits.h if one fits)."""

    BAD_SPEC = 64
    BAD_MODEL = 65
    NO_MODEL = 66
    NO_LLAMA_CPP = 69
    CRASHED = 70
    OUT_OF_MEMORY = 71
    ADDRESS_IN_USE = 73


class EngineError(Exception):
    """An engine cannot start or has failed. It has the reason and one sentence for people."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


REPORT_PREFIX = "engine: "
"""Prefix of the line in which the embedded engine reports why it ends; the supervising process looks for it."""

_CAUSE = "error loading model: "
"""Prefix of the reason why a model does not load."""
_TEMPLATE_CAUSES = ("common_chat_templates_init: error: ", "chat template parsing error: ")
"""Prefixes of the reason why a chat template cannot be used, the most specific first; the second one is always there."""
_TEMPLATE_REMEDY = "Use one of llama.cpp's own instead, for instance --chat-template chatml"
"""Not --no-jinja, which llama.cpp also suggests: llama.cpp parses the template even with that flag."""

# Messages of llama.cpp, the most specific reason first: a failed allocation also causes "failed to load model". Of the marks of one reason,
# the first one in this list that is found counts, because llama.cpp reports several times after the cause that it has failed.
_LOG_MARKS: tuple[tuple[FailureReason, tuple[str, ...]], ...] = (
    (
        FailureReason.OUT_OF_MEMORY,
        ("out of memory", "failed to allocate", "unable to allocate", "cannot allocate memory", "bad_alloc"),
    ),
    (FailureReason.ADDRESS_IN_USE, ("couldn't bind http server socket", "address already in use")),
    (
        FailureReason.BAD_MODEL,
        (
            _CAUSE,
            "invalid magic",
            "unknown model architecture",
            "not within the file bounds",
            "missing tensor",
            "failed to read",
            "gguf_init",
            "failed to load model",
        ),
    ),
    (FailureReason.BAD_SPEC, ("error while handling argument", "error: invalid argument", "error: unknown argument")),
)

_SIGNAL_WORDS: dict[int, str] = {
    signal.SIGILL: "used an instruction that this processor does not have; use a build for this processor",
    signal.SIGABRT: "stopped itself on an internal check",
    signal.SIGSEGV: "crashed",
    signal.SIGBUS: "lost its model file while reading it, or crashed",
}


def explain(exit_code: int, log: Sequence[str]) -> EngineError:
    """Return why llama.cpp ended, from its exit code (negative: killed by that signal) and its last log lines.

    Call it only for an unrequested exit: a process that the engine stopped itself has not failed.
    """
    known = {reason.value: reason for reason in FailureReason}
    if exit_code in known:
        return EngineError(known[exit_code], _last_report(log) or f"llama.cpp exited with code {exit_code}")
    if exit_code == -signal.SIGKILL:
        return EngineError(
            FailureReason.OUT_OF_MEMORY,
            "llama.cpp was killed by the system, most likely for memory: use a smaller context, fewer slots or a smaller model",
        )
    if problem := _template_problem(log):
        return EngineError(
            FailureReason.BAD_MODEL,
            f"llama.cpp cannot use the chat template of the model: {problem}. {_TEMPLATE_REMEDY}",
        )
    for reason, marks in _LOG_MARKS:
        line = next((line for mark in marks for line in log if mark in line.lower()), None)
        if line is not None:
            return EngineError(reason, f"llama.cpp: {_text_of(line).rpartition(_CAUSE)[2]}")
    if exit_code < 0:
        words = _SIGNAL_WORDS.get(-exit_code, "was ended")
        return EngineError(FailureReason.CRASHED, f"llama.cpp {words} ({signal_name(-exit_code)})")
    last = _text_of(log[-1]) if log else "it wrote nothing"
    return EngineError(FailureReason.CRASHED, f"llama.cpp exited with code {exit_code}: {last}")


def _template_problem(log: Sequence[str]) -> str | None:
    """Return why llama.cpp cannot use a chat template, or None if it can."""
    if not any(_TEMPLATE_CAUSES[-1] in line for line in log):
        return None
    # The error of the template is on a line of its own after the line that reports the failure.
    shown = [line.removeprefix("Error: ") for line in log if line.startswith("Error: ")]
    causes = [line.partition(mark)[2] for mark in _TEMPLATE_CAUSES for line in log if mark in line]
    return " ".join((shown + causes)[0].split()).rstrip(".:")


def _last_report(log: Sequence[str]) -> str | None:
    reports = [line.removeprefix(REPORT_PREFIX) for line in log if line.startswith(REPORT_PREFIX)]
    return reports[-1] if reports else None


def _text_of(line: str) -> str:
    """Return a log line without llama.cpp's timestamp, level and module columns."""
    for level in (" E ", " W ", " I "):
        _, found, rest = line.partition(level)
        if found:
            return " ".join(rest.split())
    return " ".join(line.split())
