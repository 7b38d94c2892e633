"""`llamesh set`: changes a server that is there. Only what is given changes; the server must still be as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from llamesh import runtime_parameters
from llamesh.cli.connection import connected
from llamesh.cli.durations import MaybeIdleSleep, MaybeWakeBudget
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import find_server
from llamesh.cli.output import Output, show_one, text
from llamesh.cli.printing import note
from llamesh.cli.readiness import awaited
from llamesh.cli.serve import Flags, find_models, given_parameters, with_runtime_parameters
from llamesh.cli.served_names import warn_of_shared
from llamesh.cli.servers import SERVER, ServerName
from llamesh.nearest import nearest

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server, ServerChanges

MaybeReplicas = Annotated[int | None, Parameter(name=("--replicas", "-r"), validator=Number(gte=1, lte=1000))]
_OWN = ("name", "replicas", "idle_sleep", "wake_budget", "metered")
"""Options of a server that are no runtime parameters."""
_FIXED = {"namespace": "a server stays where it was declared", "model": "a server serves one model"}
"""What a server is declared with for good, and why."""


@with_runtime_parameters
def change(
    server: ServerName,
    /,
    *flags: Flags,
    name: str | None = None,
    replicas: MaybeReplicas = None,
    idle_sleep: MaybeIdleSleep = None,
    wake_budget: MaybeWakeBudget = None,
    metered: bool | None = None,
    namespace: Annotated[str | None, Parameter(show=False)] = None,
    unset: Annotated[Sequence[str], Parameter(negative="", allow_leading_hyphen=True)] = (),
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
        Time without a request after which the engines are stopped until the next one: 10m, 1h, seconds, or never.
    wake_budget
        How long a request may wait for an engine that is starting: 30s, 2m, seconds, or default, which is 2m.
    metered
        Ask the contract service about every request to this server, or only about tokens with a limited contract and tokens that may
        have lost rights.
    unset
        An option that gets its default again, for instance idle-sleep, name or ctx-size; may be repeated.
    wait
        Wait until every engine answers. A server that is asleep stays so.
    """
    from llamesh.client.references import set_seconds
    from llamesh.v1 import server_pb2

    given = given_parameters(flags, runtime)
    own = {"name": name, "replicas": replicas, "idle_sleep": idle_sleep, "wake_budget": wake_budget, "metered": metered}
    defaults = _named([*unset, *(["namespace"] if namespace is not None else [])])
    both = {item for item, value in (own | given.get("parameters", {})).items() if value is not None} & set(defaults)
    if both:
        raise CommandError(f"{_shown(min(both))} is given and unset at once", code=Exit.USAGE)
    changes = server_pb2.ServerChanges(model_name=name, replicas=replicas, metered=metered)
    set_seconds(changes.idle_sleep, idle_sleep) if idle_sleep is not None else None
    set_seconds(changes.wake_budget, wake_budget) if wake_budget is not None else None
    with connected() as mesh:
        find_models(mesh, given)
        present = mesh.servers.get(find_server(mesh, server))
        _set_defaults(mesh, changes, present, defaults)
        _set_parameters(changes, present, given, [item for item in defaults if item not in own])
        if not changes.ListFields():
            raise CommandError("nothing is to be changed", hint="llamesh set --help lists what can be", code=Exit.USAGE)
        changed = mesh.servers.update(present, changes, etag=present.etag)
        _say(present, changed)
        if changed.model_name != present.model_name:
            warn_of_shared(changed, list(mesh.servers.list()))
        if wait and changed.state != server_pb2.SERVER_STATE_SLEEPING:
            changed = awaited(mesh, changed)
    show_one(changed, output, SERVER)


def _shown(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _named(unset: Sequence[str]) -> list[str]:
    """The arguments that words of --unset mean. CommandError for an unknown word, and for one that cannot be unset."""
    known: dict[str, str] = {item: item for item in _OWN}
    for parameter in runtime_parameters.all_parameters().values():
        flags = (parameter.name, parameter.flag, *parameter.aliases, *parameter.negatives, *parameter.implied)
        known |= {_bare(flag): parameter.name for flag in flags}
    # The name of a server is an option of its own, and --alias says the same.
    known |= {"alias": "name", "a": "name", "r": "replicas"}
    found = []
    for word in unset:
        meant = known.get(_bare(word))
        if _bare(word) in _FIXED:
            words = f"{_shown(_bare(word))} cannot be changed: {_FIXED[_bare(word)]}"
            raise CommandError(words, hint="`llamesh stop` the server and serve it again", code=Exit.USAGE)
        if meant is None:
            near = nearest(_bare(word), known)
            hint = f"did you mean {_shown(near)[2:]}?" if near else "llamesh set --help lists the options"
            raise CommandError(f"--unset {word}: no option of a server", hint=hint, code=Exit.USAGE)
        found.append(meant)
    return found


def _bare(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def _set_defaults(mesh: Client, changes: ServerChanges, present: Server, unset: Sequence[str]) -> None:
    """Put the defaults of the server's own options into the changes. A duration of zero means the default."""
    if "name" in unset:
        changes.model_name = mesh.models.get(present.model_uuid, by_name=False).name
    if "replicas" in unset:
        changes.replicas = 1
    if "metered" in unset:
        changes.metered = False
    for name in ("idle_sleep", "wake_budget"):
        if name in unset:
            getattr(changes, name).SetInParent()


def _set_parameters(changes: ServerChanges, present: Server, given: dict[str, Any], unset: Sequence[str]) -> None:
    """Put the whole set of runtime parameters into the changes, if any of it changes.

    A value that means the same as leaving a parameter out (`--flash-attn auto`) unsets it.
    """
    from llamesh.client.parameters import typed

    if "runtime_params" in given:
        if unset:
            raise CommandError("flags after -- replace all runtime parameters: none is left to unset", code=Exit.USAGE)
        changes.runtime_params = given["runtime_params"]
        return
    wanted = given["parameters"]
    if not wanted and not unset:
        return
    made = typed(wanted)
    parameters = type(present.spec.parameters)()
    parameters.CopyFrom(present.spec.parameters)
    for item in (*unset, *wanted):
        parameters.ClearField(item)
    parameters.MergeFrom(made)
    if parameters.ListFields():
        changes.parameters.CopyFrom(parameters)
    else:
        changes.runtime_params = ""


def _say(before: Server, after: Server) -> None:
    """Say what changed and what it does to the engines."""
    from llamesh.cli.manifest.differences import differences

    found = list(differences(before.spec, after.spec, "spec"))
    for item in found:
        note(text(str(item).removeprefix("spec.")))
    if not found:
        note("nothing differs from what was in force")
    elif before.spec.parameters != after.spec.parameters:
        note("engines that run are replaced one after the other with these parameters; requests go on")
    else:
        note("no engine is restarted")
