"""`llamesh doctor`: what a mesh needs, what is there, and how to get the rest."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from llamesh.cli.failure import Exit
from llamesh.cli.mesh.checks import examine
from llamesh.cli.output import document, text

_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def doctor(*, output: Annotated[Literal["table", "json", "yaml"], Parameter(name=("--output", "-o"))] = "table") -> int:
    """Check this machine and the mesh that runs on it. Exit code 1 where something must be mended."""
    problems = 0
    found = []
    for finding in examine(os.environ):
        problems += finding.state == "problem"
        found.append(asdict(finding))
        if output == "table":
            print(text(f"{_MARKS[finding.state]} {finding.check:<12} {finding.found}"), flush=True)
            if finding.fix:
                print(text(f"{'':<22}-> {finding.fix}"), flush=True)
    if output != "table":
        print(document(found, output))
    elif problems:
        print(f"{problems} to mend", file=sys.stderr)
    return Exit.FAILED if problems else Exit.OK
