"""Files in which members publish what they wait for before they can serve, for `llamesh up` and `llamesh doctor`.

Each member has one file in the run directory. Invariant: a file counts only while the process that wrote it runs. A missing or damaged file
counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llamesh.private_files import write_private
from llamesh.processes import ProcessId

SUFFIX = ".waits"


@dataclass(frozen=True, slots=True)
class Wait:
    """The reason for which a member waits."""

    words: str
    """For instance "the database at db:5432: it does not answer"."""
    remedy: str
    """The remedy for a person."""


def say(run_dir: Path, member: str, wait: Wait) -> None:
    """Publish what a member, which is this process, waits for; OSError if the file cannot be written."""
    process = ProcessId.of(os.getpid())
    said = {"pid": process.pid, "started": process.started, **asdict(wait)}
    write_private(run_dir / f"{member}{SUFFIX}", json.dumps(said).encode(), durable=False)


def clear(run_dir: Path, member: str) -> None:
    """Remove the file: the member no longer waits."""
    with contextlib.suppress(OSError):
        (run_dir / f"{member}{SUFFIX}").unlink(missing_ok=True)


def waits(run_dir: Path) -> dict[Wait, list[str]]:
    """Return every reason to wait, with the members that wait."""
    found: dict[Wait, list[str]] = {}
    for member, wait in sorted(_said(run_dir), key=lambda said: said[0]):
        found.setdefault(wait, []).append(member)
    return found


def sentence(wait: Wait, members: Sequence[str]) -> str:
    """Describe the waits in words: "gateway waits for the database ..."."""
    return f"{', '.join(members)} {'wait' if len(members) > 1 else 'waits'} for {wait.words}"


def _said(run_dir: Path) -> Iterator[tuple[str, Wait]]:
    for path in run_dir.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if ProcessId(int(found["pid"]), str(found["started"])).alive:
                yield path.name.removesuffix(SUFFIX), Wait(str(found["words"]), str(found["remedy"]))
