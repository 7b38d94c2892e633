"""Waits until the engines of a server answer, and shows meanwhile what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.cli.progress import ProgressFigures, ProgressLine

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server

WAIT_SECONDS = 120.0
"""Seconds for which a command waits if it has no option for it."""


def awaited(mesh: Client, server: Server, timeout: float = WAIT_SECONDS) -> Server:
    """Wait for a server, for at most `timeout` seconds; see `Servers.wait_ready`. Ctrl-C ends the waiting only, and says how to go on."""
    name, uuid = text(server.model_name or server.server_uuid), server.server_uuid[:8]
    shown = ProgressLine(unknown=False)
    shown.look(ProgressFigures(name, "waits for its engines", 0, 0))
    try:
        with shown.shows(mesh.silence):
            return mesh.servers.wait_ready(server, timeout=timeout)
    except BaseException as error:
        shown.clear()
        if mesh.silence.seconds:
            note(f"it is not known whether the server {name} goes on starting: `llamesh wait {uuid}` waits for it")
        elif isinstance(error, KeyboardInterrupt):
            note(
                f"the server {name} goes on starting: `llamesh wait {uuid}` waits for it, `llamesh stop {uuid}` ends it"
            )
        raise
    finally:
        shown.clear()
