"""`llamesh describe`: everything about one server: what is declared, what is in force, what it takes of memory, each engine, and its
model; or everything about one model.

Invariant: a number that the mesh does not report is omitted or shown as unknown, never guessed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llamesh.cli import described_model
from llamesh.cli.absent_models import refuse_coming
from llamesh.cli.connection import connected
from llamesh.cli.context_sizes import model_context, model_of
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import ServerNotUniqueError, own_server, refuse_near
from llamesh.cli.output import Output, show_one, size, text, when, word
from llamesh.cli.placement import options_of
from llamesh.cli.printing import say
from llamesh.cli.servers import SERVER
from llamesh.client.names import names_of, resolve

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration as ProtoDuration

    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import MemoryEstimate, Server

_METERED = "yes: the contract service is asked about every request"
_NOT_METERED = (
    "no: the contract service is asked about tokens with a limited contract or with rights that may have ended"
)


ServerOrModel = Annotated[
    str, Parameter(help="The id of a server or its name; else the id, the name or an alias of a model.")
]


def describe(server: ServerOrModel, *, output: Output = "table") -> None:
    """Show everything about one server: what is wanted, what holds and why, each engine, its model. Of a model: what its file says."""
    from llamesh.client import errors
    from llamesh.v1 import server_pb2

    with connected() as mesh:
        servers = list(mesh.servers.list())
        try:
            found = own_server(server, servers) or mesh.servers.get(server)
        except errors.ServerNotFound:
            _describe_model(mesh, server, output, servers)
            return
        except ServerNotUniqueError:
            if not any(server in pair for model in mesh.models.list() for pair in names_of(model)):
                raise
            # Of a model that several servers serve under its name, the description lists them with their ids.
            _describe_model(mesh, server, output, servers)
            return
        if output != "table":
            show_one(found, output, SERVER)
            return
        model = model_of(mesh, found)
        in_force = [*_in_force(found, model_context(model)), ("Memory", _memory(mesh, found))]
    for column in SERVER:
        _say(f"{column.title.capitalize():<12}{text(column.value(found))}", 12)
    for title, shown in in_force:
        _say(f"{title:<12}{text(shown)}", 12)
    say("Conditions")
    for item in found.conditions:
        holds = word(server_pb2.ConditionStatus, item.status, "CONDITION_STATUS_").lower()
        since = f" since {when(item.last_transition_time)}" if item.last_transition_time.seconds else ""
        _say(text(f"  {item.type:<16}{holds:<8}{item.reason:<20}{item.message}{since}").rstrip(), 4)
    say("Engines")
    for engine in found.replica_statuses:
        state = word(server_pb2.ReplicaState, engine.state, "REPLICA_STATE_")
        words = f"  {engine.index}  {state:<10}{engine.instance:<10}{engine.restarts} restarts  {engine.message}"
        _say(text(words).rstrip(), 4)
    if model is not None:
        say("Model")
        for line in described_model.lines(model):
            _say(f"  {line}", described_model.WIDTH + 2)


def _describe_model(mesh: Client, name: str, output: Output, servers: Sequence[Server]) -> None:
    """Show everything about the model that a name names. CommandError if it names neither a server nor a model."""
    from llamesh.cli.models import MODEL
    from llamesh.client import errors

    models = list(mesh.models.list())
    pairs = [pair for model in models for pair in names_of(model)]
    try:
        found = mesh.models.get(resolve(name, pairs))
    except errors.ModelNotFound:
        refuse_coming(mesh, name)
        pairs += [(item.server_uuid, item.model_name) for item in servers]
        refuse_near(name, pairs, "server and no model")
        hint = "`llamesh status` lists the servers, `llamesh models` the models"
        raise CommandError(f"there is no server and no model {text(name)}", hint=hint, code=Exit.NOT_FOUND) from None
    if output != "table":
        show_one(found, output, MODEL)
        return
    for line in described_model.lines(found):
        _say(line, described_model.WIDTH)
    for server in servers:
        if server.model_uuid == found.model_uuid:
            words = f"{server.server_uuid}  {server.model_name}  {server.runtime_params}".rstrip()
            _say(described_model.row("Served by", words), described_model.WIDTH)


def _say(line: str, indent: int) -> None:
    """Print a line; in a terminal broken between words, with its further lines indented."""
    if not sys.stdout.isatty():
        say(line)
        return
    from shutil import get_terminal_size

    from llamesh.cli.terminal_table import wrapped

    say(wrapped(line, get_terminal_size().columns, indent))


def _in_force(server: Server, trained: int) -> Iterator[tuple[str, object]]:
    """Yield the values in force for a server, defaults included."""
    from llamesh import runtime_parameters

    spec = server.spec
    slots = spec.parameters.parallel or runtime_parameters.DEFAULT_PARALLEL
    yield "Context", f"{_context(server, trained)} for each of {slots} slots"
    yield "Idle sleep", _length(spec.idle_sleep) or "never"
    yield "Wake budget", _length(spec.wake_budget) or "120s (default)"
    yield "Metered", _METERED if spec.metered else _NOT_METERED
    yield "Namespace", spec.namespace or "default"
    if spec.HasField("placement"):
        yield "Placement", options_of(spec.placement)
    yield "Generation", f"{server.generation}, observed {server.observed_generation}"
    yield "Declared", when(server.create_time)
    if server.HasField("next_start_time"):
        yield "Next start", when(server.next_start_time)


def _context(server: Server, trained: int) -> str:
    from llamesh import runtime_parameters

    parameters = server.spec.parameters
    if not parameters.ctx_size and not trained:
        return f"the model's own, at most {runtime_parameters.DEFAULT_SLOT_CONTEXT} tokens"
    slot = runtime_parameters.slot_context(parameters, trained)
    if parameters.kv_unified:
        return f"up to {slot} tokens, one cache for all"
    return f"{slot} tokens of {runtime_parameters.with_defaults(parameters, trained).ctx_size}"


def _memory(mesh: Client, server: Server) -> str:
    """Return the memory of the server by the estimate that decides whether it may start."""
    from llamesh.client.errors import MeshError

    spec = server.spec
    try:
        memory = mesh.check(
            server.model_uuid, replicas=spec.replicas or 1, namespace=spec.namespace, parameters=spec.parameters
        ).memory
    except MeshError as refused:
        return f"not known: {refused}"
    return _parts(memory) if memory.total_bytes else "not known"


def _parts(memory: MemoryEstimate) -> str:
    shared = f", {size(memory.shared_weights_bytes)} of the weights shared" if memory.shared_weights_bytes else ""
    engines = f"{memory.replicas} engines" if memory.replicas != 1 else "1 engine"
    return (
        f"{size(memory.total_bytes)} estimated for {engines}; each: weights {size(memory.weights_bytes)}, "
        f"KV cache {size(memory.kv_cache_bytes)}, overhead {size(memory.overhead_bytes)}{shared}"
    )


def _length(duration: ProtoDuration) -> str:
    return str(duration.ToJsonString()) if duration.ToNanoseconds() else ""
