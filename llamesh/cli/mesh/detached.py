"""`llamesh up --detach`: a supervisor in the background, waited for until its mesh is ready or it has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import logfiles
from llamesh.cli.mesh.lock import MeshRunningError, holder, is_ready
from llamesh.cli.mesh.progress import READY_SECONDS, lacking_of
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.supervisor import OWN_LOG


def start(settings: MeshSettings) -> int:
    """Start a supervisor of its own and return once the mesh is ready; else what the supervisor ended with.

    MeshRunningError if a mesh runs already; CommandError if it takes too long, which ends nothing.
    """
    if running := holder(settings.home):
        raise MeshRunningError(running)
    log = logfiles.path_of(settings.logs, OWN_LOG)
    # Appended to: another start may have won since, and what is in it belongs to the running mesh then.
    with log.open("a") as output:
        beginning = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llamesh.cli.main", "up"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while True:
        said, beginning = _read_on(log, beginning)
        # That it is ready is said after it counts as ready, and in other words by the caller.
        if is_ready(settings.home, process.pid):
            return Exit.OK
        sys.stderr.write(said)
        sys.stderr.flush()
        if process.poll() is not None:
            sys.stderr.write(_read_on(log, beginning)[0])
            return process.returncode
        if time.monotonic() > deadline:
            raise CommandError(
                "the mesh is not ready yet; it goes on starting",
                parts=lacking_of(settings),
                hint=f"`llamesh doctor` explains; its output is in {log}",
                code=Exit.UNAVAILABLE,
            )
        time.sleep(0.05)


def _read_on(log: Path, start: int) -> tuple[str, int]:
    """What a log has beyond a place, and where it ends now."""
    with log.open("rb") as file:
        file.seek(start)
        content = file.read()
    return content.decode(errors="replace"), start + len(content)
