"""`llamesh set`: changes a server that is there. Only what is given changes; the server must still be as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from llamesh import runtime_parameters
from llamesh.cli.connection import connected
from llamesh.cli.durations import MaybeDuration
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Output, show_one, text
from llamesh.cli.printing import note
from llamesh.cli.serve import Flags, find_models, given_parameters, with_runtime_parameters
from llamesh.cli.servers import SERVER, ServerName

if TYPE_CHECKING:
    from llamesh.v1.server_pb2 import Server, ServerChanges

MaybeReplicas = Annotated[int | None, Parameter(name=("--replicas", "-r"))]


@with_runtime_parameters
def change(
    server: ServerName,
    /,
    *flags: Flags,
    name: str | None = None,
    replicas: MaybeReplicas = None,
    idle_sleep: MaybeDuration = None,
    wake_budget: MaybeDuration = None,
    metered: bool | None = None,
    unset: Annotated[Sequence[str], Parameter(negative="")] = (),
    wait: bool = False,
    output: Output = "table",
    **runtime: runtime_parameters.Value | None,
) -> None:
    """Change a server that is there. What is not given stays; flags after -- replace all runtime parameters.

    Parameters
    ----------
    name
        The name that requests put into "model".
    replicas
        Engines wanted while awake.
    idle_sleep
        Time without a request after which the engines are stopped: 10m, 1h, or seconds; 0 for never.
    wake_budget
        How long a request may wait for an engine that is starting: 30s, 2m, or seconds; 0 for the default.
    metered
        Ask for every request whether it may be, whatever the token says.
    unset
        A runtime parameter that gets its default again, for instance ctx-size; may be repeated.
    wait
        Wait until every engine answers. A server that is asleep stays so.
    """
    from llamesh.client.references import set_seconds
    from llamesh.v1 import server_pb2

    given = given_parameters(flags, runtime)
    changes = server_pb2.ServerChanges(model_name=name, replicas=replicas, metered=metered)
    set_seconds(changes.idle_sleep, idle_sleep) if idle_sleep is not None else None
    set_seconds(changes.wake_budget, wake_budget) if wake_budget is not None else None
    with connected() as mesh:
        find_models(mesh, given)
        present = mesh.servers.get(mesh.servers.find(server))
        _set_parameters(changes, present, given, [item.lstrip("-").replace("-", "_") for item in unset])
        if not changes.ListFields():
            raise CommandError("nothing is to be changed", hint="llamesh set --help lists what can be", code=Exit.USAGE)
        changed = mesh.servers.update(present, changes, etag=present.etag)
        _say(present, changed)
        if wait and changed.state != server_pb2.SERVER_STATE_SLEEPING:
            changed = mesh.servers.wait_ready(changed)
    show_one(changed, output, SERVER)


def _set_parameters(changes: ServerChanges, present: Server, given: dict[str, Any], unset: Sequence[str]) -> None:
    """Put the whole set of runtime parameters into the changes, if any of it changes."""
    from llamesh.client.parameters import typed

    if "runtime_params" in given:
        changes.runtime_params = given["runtime_params"]
        return
    if unknown := [item for item in unset if item not in runtime_parameters.all_parameters()]:
        words = f"--unset {unknown[0]}: not a runtime parameter"
        raise CommandError(words, hint="llamesh describe shows those that are set", code=Exit.USAGE)
    wanted = given["parameters"]
    if not wanted and not unset:
        return
    parameters = type(present.spec.parameters)()
    parameters.CopyFrom(present.spec.parameters)
    for item in unset:
        parameters.ClearField(item)  # type: ignore[arg-type]
    parameters.MergeFrom(typed(wanted))
    if parameters.ListFields():
        changes.parameters.CopyFrom(parameters)
    else:
        changes.runtime_params = ""


def _say(before: Server, after: Server) -> None:
    """Say what changed and what it does to the engines."""
    from llamesh.cli.manifest.plan import differences

    found = list(differences(before.spec, after.spec, "spec"))
    for item in found:
        note(text(str(item).removeprefix("spec.")))
    if not found:
        note("nothing differs from what was in force")
    elif before.spec.parameters != after.spec.parameters:
        note("engines that run are replaced one after the other with these parameters; requests go on")
    else:
        note("no engine is restarted")
