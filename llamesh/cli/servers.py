"""`llamesh status, wait, scale, sleep, wake, stop`: declared servers and how they do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llamesh.cli.connection import connected
from llamesh.cli.durations import Duration
from llamesh.cli.lookups import find_server
from llamesh.cli.output import Column, Output, show_json_line, show_list, show_one, text, when, word
from llamesh.cli.printing import note, say
from llamesh.cli.silence import announcement, tells

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server

ServerName = Annotated[
    str, Parameter(help="Its id, its name or the beginning of its id; or a name of the model that it alone serves.")
]


def _state(server: Server) -> str:
    from llamesh.v1 import server_pb2

    return word(server_pb2.ServerState, server.state, "SERVER_STATE_")


def _reason(server: Server) -> str:
    return next((item.message or item.reason for item in server.conditions if item.type == "Ready"), "")


SERVER = (
    Column("SERVER", lambda server: server.server_uuid),
    Column("MODEL", lambda server: server.model_name),
    Column("STATE", _state),
    Column("READY", lambda server: f"{server.ready_replicas}/{server.replicas}"),
    Column("ENDPOINT", lambda server: server.endpoint, spare=True),
    Column("PARAMETERS", lambda server: server.runtime_params, wide=True),
    Column("OWNER", lambda server: server.owner, wide=True),
    Column("SINCE", lambda server: when(server.update_time), wide=True),
    Column("WHY", _reason, wide=True),
)

_AMISS = ("STARTING", "DEGRADED", "FAILING")
"""States of a server that does not do all that is wanted of it."""


def status(
    *, watch: Annotated[bool, Parameter(name=("--watch", "-w"), negative="")] = False, output: Output = "table"
) -> None:
    """List the servers with their state.

    Parameters
    ----------
    watch
        Go on showing what changes. In JSON one object a line.
    """
    with connected() as mesh:
        if watch:
            _watch(mesh, output)
            return
        servers = list(mesh.servers.list())
        show_list(servers, output, SERVER)
    if output == "table":
        _explain(servers)


def _explain(servers: Sequence[Server]) -> None:
    """Say why servers are not as they should be: the table has no room for it."""
    for server in servers:
        if _state(server) in _AMISS and _reason(server):
            note(text(f"{server.model_name or server.server_uuid} is {_state(server)}: {_reason(server)}"))


def wait(server: ServerName, *, timeout: Duration = 120.0, output: Output = "table") -> None:
    """Wait until every engine of a server answers. Fails at once if the server is asleep: its first request wakes it.

    Parameters
    ----------
    timeout
        How long to wait: 2m, or seconds; exit code 6 after it.
    """
    with connected() as mesh:
        show_one(mesh.servers.wait_ready(find_server(mesh, server), timeout=timeout), output, SERVER)


def scale(server: ServerName, replicas: PositiveInt, *, output: Output = "table") -> None:
    """Change the number of engines.

    Parameters
    ----------
    replicas
        Engines wanted while awake.
    """
    with connected() as mesh:
        show_one(mesh.servers.scale(find_server(mesh, server), replicas), output, SERVER)


def sleep(server: ServerName, *, output: Output = "table") -> None:
    """Stop the engines until the next request; running requests are finished first."""
    with connected() as mesh:
        show_one(mesh.servers.sleep(find_server(mesh, server)), output, SERVER)


def wake(server: ServerName, *, output: Output = "table") -> None:
    """Start the engines of a sleeping server."""
    with connected() as mesh:
        show_one(mesh.servers.wake(find_server(mesh, server)), output, SERVER)


def stop(server: ServerName, /, *servers: ServerName) -> int:
    """Stop servers and forget them. A name that fails leaves no other undone."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def end(name: str) -> None:
            gone = mesh.servers.stop(find_server(mesh, name))
            note(f"stopped {gone.server_uuid} ({gone.model_name})")

        return for_each([server, *servers], end)


def _watch(mesh: Client, output: str) -> None:
    """Show the servers as they change: a live table in a terminal, elsewhere one line for each change."""
    if output == "table" and sys.stdout.isatty():
        _live(mesh)
        return
    for event in mesh.watch(kinds=["SERVERS"]):
        kind = event.WhichOneof("event")
        if kind not in {"server", "stopped_server"}:
            continue
        server = getattr(event, kind)
        if output == "json":
            show_json_line(server)
        else:
            say("  ".join(text(column.value(server)) for column in SERVER if not column.wide))


def _live(mesh: Client) -> None:
    from rich.live import Live

    from llamesh.cli.terminal_table import fitting, table

    columns = [column for column in SERVER if not column.wide]
    known: dict[str, Server] = {}
    with Live(auto_refresh=False) as live, tells(mesh.silence, announcement(live.console.print)):
        for event in mesh.watch(kinds=["SERVERS"]):
            if event.WhichOneof("event") == "server":
                known[event.server.server_uuid] = event.server
            elif event.WhichOneof("event") == "stopped_server":
                known.pop(event.stopped_server.server_uuid, None)
            servers = list(known.values())
            width = live.console.width
            live.update(table(servers, fitting(servers, columns, width), width), refresh=True)
