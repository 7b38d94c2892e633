"""Checks of a mesh that is not the one of this machine's home, for `llamesh doctor`: what it answers, and nothing of this machine.

Invariant: no file, port or setting of this machine is reported as if it were that mesh's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING

from llamesh import __version__
from llamesh.cli.failure import CommandError
from llamesh.cli.mesh.findings import Finding, State
from llamesh.cli.output import word
from llamesh.cli.token_claims import end_of
from llamesh.locations import home_directory

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.gateway_pb2 import Health

SECONDS = 10.0
"""Deadline in seconds of the question for its health."""
NOT_CHECKED = (
    "its disk, ports, settings, logs and programs are not seen from here: `llamesh doctor` on its machine checks them"
)


def examine(url: str) -> Iterator[Finding]:
    """Run the checks of the mesh at an address. A failure is a finding."""
    from llamesh.cli.connection import check_gateway, connected
    from llamesh.cli.refusals import command_error

    yield Finding("mesh", "ok", f"{url}, which is not the mesh of this machine's home: {NOT_CHECKED}")
    try:
        with connected() as mesh:
            yield token(mesh)
            # Health needs none, and at an address of a mesh that has ended a stranger may listen.
            mesh.transport.token = ""
            found = mesh.health(timeout=SECONDS)
            # Each port of the mesh answers for its health.
            check_gateway(mesh, SECONDS)
    except Exception as error:
        yield _not_answering(command_error(error))
        return
    yield from components(found)


def not_checked_here(environment: Mapping[str, str]) -> str:
    """Say that this machine was not checked, with the command that checks it and the home in force."""
    return f"this machine was not checked: `LLAMESH_URL= LLAMESH_HOME={quote(str(home_directory(environment)))} llamesh doctor` checks it"


def token(mesh: Client, now: datetime | None = None) -> Finding:
    """The token that is sent to the mesh. The mesh alone can say whether it is valid."""
    given = mesh.transport.token
    if not given:
        return Finding("login", "warning", "you are not signed in there", "llamesh login")
    end = end_of(given)
    if end is not None and end <= (now or datetime.now(UTC)):
        return Finding("login", "warning", f"the token has expired ({end:%Y-%m-%d %H:%M} UTC)", "llamesh login")
    return Finding("login", "ok", f"a token until {end:%Y-%m-%d %H:%M} UTC" if end else "a token")


def components(health: Health) -> Iterator[Finding]:
    """Version and components, as the mesh reports them."""
    from llamesh.v1 import gateway_pb2

    if health.version == __version__:
        yield Finding("version", "ok", health.version)
    else:
        words = f"the mesh is {health.version or 'of an unknown version'}, this command {__version__}"
        yield Finding("version", "warning", words, "use the same version of both")
    for part in health.components:
        state = word(gateway_pb2.HealthState, part.status, "HEALTH_STATE_")
        level: State = {"OK": "ok", "DEGRADED": "warning"}.get(state, "problem")  # type: ignore[assignment]
        fix = "" if level == "ok" else "`llamesh doctor` and `llamesh logs` on its machine say more"
        yield Finding(part.name, level, part.message or state.lower(), fix)


def _not_answering(failure: CommandError) -> Finding:
    from llamesh.cli.refusals import NobodyAnswersError

    words = "; ".join([failure.cause, *failure.parts])
    fix = failure.hint
    if isinstance(failure, NobodyAnswersError):
        # Its hint would start a mesh here.
        fix = "start it on its machine, or correct LLAMESH_URL; a firewall may be in between"
    return Finding("front door", "problem", words, fix)
