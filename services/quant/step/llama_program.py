"""Runs a program of llama.cpp for a step: reports its progress, and keeps its last lines for the reason of a failure.

`python -m services.quant.step.llama_program PROGRAM ARGUMENTS...` becomes PROGRAM; on Linux it ends with the step that started it.
Invariant: llama.cpp gets no secrets of the environment, because it parses untrusted files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamesh.disk_space import free_bytes
from llamesh.processes import exit_words
from llamesh.sizes import size
from llamesh.tether import kill_with_parent
from services.quant.step.failure_messages import NO_MEMORY, translate
from services.quant.step.report import StepCrashedError, StepRefusedError, report_progress
from services.quant.step_environment import plain_variables

_NOISE = re.compile(r"^llama_model_loader: - (kv|type)|^\[\s*\d+")
_REASON = re.compile(r"fail|error|requir|disabled")
_STAMP = re.compile(r"^\d+(?:\.\d+){3} ([A-Z])(?: |$)")
"""How newer programs begin a line: the time since their start, and the level, which is I for what is no failure."""
_MAX_LINE = 500
_BLOCK = 1 << 12
_MAX_REST = 1 << 16
"""Maximum number of characters of an unfinished line that are kept. A program may write its whole progress into one line."""
_MIN_FREE = 64 << 20
"""If the disk has less free space than this, a failed write counts as a full disk."""


@dataclass(frozen=True, slots=True)
class ProgressMarks:
    """How a program writes its progress: `done` matches each mark of a unit, `total` the number of units if the marks lack it.

    `units` is that number if it is always the same.
    """

    done: re.Pattern[str]
    total: re.Pattern[str] | None = None
    units: int = 0


def run_program(
    what: str,
    module: str,
    words: Sequence[str],
    progress: ProgressMarks,
    *,
    folder: Path,
    variables: dict[str, str],
    usual_reason: str = "",
) -> None:
    """Run `python -m module words` in a folder, to its end. `what` names it in messages.

    `usual_reason` is added to a failure that llama.cpp does not explain: its programs may end before their last lines are written.
    Its lines are shown to callers, who may not know where this machine has the folder: they name the files in it without their folder.
    Raises StepRefusedError with llama.cpp's reason, or STORE_UNAVAILABLE if the disk is full; StepCrashedError if a signal ended it.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=plain_variables(os.environ) | variables,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=30)
    with process.stdout as output:
        for line in _lines(output.fileno(), progress):
            stamp = _STAMP.match(line)
            said = line[stamp.end() if stamp else 0 :].replace(f"{folder}{os.sep}", "")[:_MAX_LINE].rstrip()
            # The reason may be at the end of a line about a tensor.
            if not _NOISE.match(said) or _REASON.search(said):
                sys.stderr.write(f"{said}\n")
                if not stamp or stamp[1] != "I":
                    last.append(said)
    code = process.wait()
    if code == 0:
        return
    if full := full_disk(folder):
        raise StepRefusedError("STORE_UNAVAILABLE", full)
    said_last = translate(list(last))
    # llama.cpp may abort where it gets no memory. Another try would get as much.
    if code < 0 and said_last != NO_MEMORY:
        raise StepCrashedError(f"{what} {exit_words(code)}")
    reason = said_last or f"{what} {exit_words(code)}{usual_reason and ': perhaps '}{usual_reason}"
    raise StepRefusedError("QUANTISATION_FAILED", reason)


def full_disk(folder: Path) -> str:
    """Return the reason of a failed write if the disk of a folder is full; empty if it is not."""
    left = free_bytes(folder)
    return f"the disk of LLAMESH_HOME is full: {size(left)} are free" if left < _MIN_FREE else ""


def program_at(setting: str) -> str:
    """Return the absolute path of the program that a setting names, because it is run in another folder; empty if the setting is."""
    return str(Path(shutil.which(setting) or setting).absolute()) if setting else ""


def _lines(source: int, progress: ProgressMarks) -> Iterator[str]:
    """Yield the lines of a file descriptor, and report the progress in them as it comes, also in an unfinished line."""
    rest, total = "", progress.units
    while block := os.read(source, _BLOCK):
        text = rest + block.decode(errors="replace")
        if progress.total and (found := progress.total.search(text)):
            total = int(found[1])
        for mark in [*progress.done.finditer(text)][-1:]:
            report_progress(int(mark[1]), int(mark[2]) if mark.re.groups > 1 else total)
        *whole, rest = text.split("\n")
        rest = rest[-_MAX_REST:]
        yield from whole
    if rest:
        yield rest


def main(words: list[str]) -> int:
    """Become a program of llama.cpp."""
    kill_with_parent()
    os.execvp(words[0], words)  # noqa: S606 - a program, no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
