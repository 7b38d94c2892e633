"""`llamesh doctor`: checks the machine and the mesh, and names a remedy for each problem."""

from __future__ import annotations

import os
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from llamesh.cli.connection import elsewhere
from llamesh.cli.failure import Exit
from llamesh.cli.output import document, text
from llamesh.cli.printing import note, say

if TYPE_CHECKING:
    from llamesh.cli.mesh.findings import Finding

_MIN_WIDTH = 20
"""Minimum width in columns of the text of a finding."""
_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def doctor(*, output: Annotated[Literal["table", "json", "yaml"], Parameter(name=("--output", "-o"))] = "table") -> int:
    """Check this machine and the mesh that runs on it, or what a mesh elsewhere says of itself. Exit code 1 if there is a problem."""
    from shutil import get_terminal_size

    from llamesh.cli.mesh import checks
    from llamesh.cli.mesh import elsewhere as remote

    problems = 0
    found = []
    # On a pipe each finding is one line, for programs that search in it.
    width = get_terminal_size().columns if sys.stdout.isatty() else 0
    url = elsewhere()
    for finding in remote.examine(url) if url else checks.examine(os.environ):
        problems += finding.state == "problem"
        found.append(asdict(finding))
        if output == "table":
            say("\n".join(lines(finding, width)))
    if output != "table":
        say(document(found, output))
    elif problems:
        note(f"{problems} to mend")
    if url:
        note(remote.not_checked_here(os.environ))
    return Exit.FAILED if problems else Exit.OK


def lines(finding: Finding, width: int) -> list[str]:
    """A finding as it is printed, in at most `width` columns; 0: as long as it is. Paths and addresses are not broken."""
    shown = _wrapped(f"{_MARKS[finding.state]} {finding.check:<12} ", finding.found, width)
    return shown + (_wrapped(f"{'':<22}-> ", finding.fix, width) if finding.fix else [])


def _wrapped(head: str, words: str, width: int) -> list[str]:
    room = max(width - len(head), _MIN_WIDTH) if width else 0
    found = textwrap.wrap(text(words), room, break_long_words=False, break_on_hyphens=False) if room else [text(words)]
    first, *more = found or [""]
    return [f"{head}{first}", *(f"{'':<{len(head)}}{line}" for line in more)]
