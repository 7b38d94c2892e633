"""`llamesh up --detach`: starts a supervisor in the background and waits until its mesh is ready or it has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import logfiles, placement
from llamesh.cli.mesh.lock import MeshRunningError, holder, is_ready
from llamesh.cli.mesh.progress import READY_SECONDS, lacking_of
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.supervisor import OWN_LOG


def start(settings: MeshSettings) -> int:
    """Start a supervisor; return 0 once its mesh is ready, or the exit code of a supervisor that has ended.

    MeshRunningError if a mesh runs already; CommandError after a timeout; the supervisor goes on starting.
    """
    if running := holder(settings.home):
        raise MeshRunningError(running)
    log = logfiles.path_of(settings.logs, OWN_LOG)
    # Append: another start may have won meanwhile, and the content then belongs to its mesh.
    with log.open("ab") as output:
        beginning = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llamesh.cli.main", "up", *placement.options(settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while True:
        said, beginning = _read_on(log, beginning)
        # The supervisor prints its welcome after it counts as ready, and the caller prints a welcome of its own.
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
    """Return the text of a log after an offset, and the offset of its end."""
    with log.open("rb") as file:
        file.seek(start)
        content = file.read()
    return content.decode(errors="replace"), start + len(content)
