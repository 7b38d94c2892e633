"""`llamesh serve, fit`: a model with llama.cpp's parameters, each an option of its own, read from the contract.

The options are not written here: they are the fields of RuntimeParameters, put into the commands' signatures when this module is
loaded, so that help, types, choices and completion know them. What stands after `--` is passed as llama.cpp's flags instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from llamesh import runtime_parameters as parameters
from llamesh.cli.connection import connected
from llamesh.cli.durations import MaybeIdleSleep, MaybeWakeBudget
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import find_model
from llamesh.cli.output import Column, Output, show_one, size
from llamesh.cli.placement import Gpus, Image, NodeSelector, PriorityClass, Tolerations, read_placement
from llamesh.cli.printing import note
from llamesh.cli.readiness import awaited
from llamesh.cli.remedies import remedy_for
from llamesh.cli.served_names import say_name, warn_of_shared
from llamesh.cli.servers import SERVER
from llamesh.client.parameters import bounds, choices, kind, words
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import MemoryEstimate, Server

LLAMA = Group(
    "llama.cpp", sort_key=10, help="What each engine is started with; after -- llama.cpp's own flags are taken too."
)
Replicas = Annotated[int, Parameter(name=("--replicas", "-r"), validator=Number(gte=1, lte=1000))]
Flags = Annotated[str, Parameter(help="llama.cpp's flags, after --, in place of the options.")]


def with_runtime_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each runtime parameter, and one for each older flag; it receives them as keyword arguments."""
    known = parameters.all_parameters()
    older = {_name(flag): (flag, item, value) for item in known.values() for flag, value in item.implied.items()}
    options = [
        *(_option(name, _annotation(item)) for name, item in known.items()),
        *(
            _option(name, Annotated[bool | None, Parameter(name=flag, negative="", show=False)])
            for name, (flag, *_) in older.items()
        ),
    ]
    own = inspect.signature(command, eval_str=True)
    kept = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(command)
    def wrapped(*positional: Any, **named: Any) -> None:
        for flag, item, value in [older[name] for name in older if named.pop(name, None)]:
            if named.get(item.name) is not None:
                raise CommandError(
                    f"{flag} stands for {item.flag} {value}, and {item.flag} is given already", code=Exit.USAGE
                )
            named[item.name] = kind(item)(value)
        try:
            command(*positional, **named)
        except Exception as error:
            if failure := _in_options(error, named):
                raise failure from error
            raise

    wrapped.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return wrapped


def _in_options(error: Exception, given: dict[str, Any]) -> CommandError | None:
    # Imported late: both bring the client, which help does not need.
    from llamesh.client.errors import MeshError

    if not isinstance(error, MeshError):
        return None
    from llamesh.cli.option_names import in_options

    return in_options(error, given)


def _name(flag: str) -> str:
    """Return the argument name for an older flag."""
    return "older" + flag.replace("-", "_")


def _option(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(item: parameters.Parameter) -> Any:
    value: Any = Literal[choices(item)] if choices(item) else kind(item)
    if others := words(item):
        value = value | Literal[others]
    flags = (item.flag, *item.aliases)
    described = Parameter(name=flags, negative=item.negatives, help=_help(item), group=LLAMA, show_default=False)
    return Annotated[value | None, described]


def _help(item: parameters.Parameter) -> str:
    """Return a parameter's help: meaning, default and bounds."""
    limits = bounds(item)
    return parameters.about()[item.name] + (f" [{limits}]" if limits else "")


@with_runtime_parameters
def serve(
    model: str,
    /,
    *flags: Flags,
    name: str = "",
    replicas: Replicas = 1,
    idle_sleep: MaybeIdleSleep = None,
    wake_budget: MaybeWakeBudget = None,
    namespace: str = "",
    metered: Annotated[bool, Parameter(negative="")] = False,
    node_selector: NodeSelector = (),
    toleration: Tolerations = (),
    gpus: Gpus = "",
    priority_class: PriorityClass = "",
    image: Image = "",
    wait: bool = False,
    output: Output = "table",
    **runtime: parameters.Value | None,
) -> None:
    """Serve a model.

    Parameters
    ----------
    model
        Its id or name.
    name
        The name that requests put into "model"; the model's own if not given. --alias says the same.
    replicas
        Engines wanted.
    idle_sleep
        Time without a request after which the engines are stopped until the next one: 10m, 1h, seconds, or never; never if not given.
    wake_budget
        How long a request may wait for an engine that is starting: 30s, 2m, seconds, or default, which is 2m.
    namespace
        Namespace on Kubernetes, one of ALLOWED_NAMESPACES; "default" if not given. It cannot be changed later.
    metered
        Ask the contract service about every request to this server. Otherwise it is asked only about tokens with a limited contract
        and tokens that may have lost rights.
    node_selector
        A label that a node must have, KEY=VALUE; may be repeated.
    toleration
        A taint that engines may run in spite of, KEY[=VALUE][:EFFECT], for instance nvidia.com/gpu:NoSchedule; may be repeated.
    gpus
        GPUs of each engine: a number, or NUMBER:RESOURCE; the resource is nvidia.com/gpu if not given.
    priority_class
        Priority class of the pods.
    image
        Image of the engine; that of LLAMESH_ENGINE_IMAGE if not given.
    wait
        Wait until every engine answers.
    """
    given = given_parameters(flags, runtime)
    placement = read_placement(node_selector, toleration, gpus, priority_class, image)
    with connected() as mesh:
        find_models(mesh, given)
        server = mesh.servers.serve(
            find_model(mesh, model),
            name=name,
            replicas=replicas,
            idle_sleep=idle_sleep,
            wake_budget=wake_budget,
            namespace=namespace,
            metered=metered,
            placement=placement,
            **given,
        )
        say_name(server, model)
        warn_of_others(server, list(mesh.servers.list()))
        if wait:
            server = awaited(mesh, server)
    show_one(server, output, SERVER)


def warn_of_others(server: Server, servers: Sequence[Server]) -> None:
    """Say if another server is declared just like this one, or has its name: more engines of one server share its queue and its name."""
    for other in staying(servers):
        same = other.model_uuid == server.model_uuid and other.runtime_params == server.runtime_params
        if same and other.server_uuid != server.server_uuid:
            note(
                f"{other.server_uuid} serves the same model with the same parameters; for more engines use one server: "
                f"`llamesh stop {server.server_uuid}`, then `llamesh scale {other.server_uuid} {other.replicas + 1}`"
            )
            return
    warn_of_shared(server, servers)


@with_runtime_parameters
def fit(
    model: str,
    /,
    *flags: Flags,
    replicas: Replicas = 1,
    namespace: str = "",
    output: Output = "table",
    **runtime: parameters.Value | None,
) -> None:
    """Check whether a model fits with these parameters, and show the memory it needs. Exit code 5 if not.

    Parameters
    ----------
    model
        Its id or name.
    replicas
        Engines wanted.
    namespace
        Kubernetes namespace.
    """
    given = given_parameters(flags, runtime)
    with connected() as mesh:
        find_models(mesh, given)
        answer = mesh.check(find_model(mesh, model), replicas=replicas, namespace=namespace, **given)
    columns = (
        Column("FITS", lambda item: "yes" if item.allowed else "no"),
        Column("NEEDS", lambda item: size(item.memory.total_bytes)),
        Column("FREE", lambda item: size(item.free_bytes)),
        Column("WEIGHTS", lambda item: size(item.memory.weights_bytes)),
        Column("SHARED", lambda item: size(item.memory.shared_weights_bytes)),
        Column("KV CACHE", lambda item: size(item.memory.kv_cache_bytes)),
        Column("OVERHEAD", lambda item: size(item.memory.overhead_bytes)),
        Column("PARAMETERS", lambda item: item.runtime_params, wide=True),
    )
    show_one(answer, output, columns)
    if answer.memory.replicas > 1 and output in {"table", "wide"}:
        note(_sum(answer.memory))
    if not answer.allowed:
        first, *others = answer.refusals
        raise CommandError(
            first.message,
            parts=[*(item.message for item in others), f"details: llamesh why {answer.decision_id}"],
            hint=remedy_for(first.reason, first.metadata, first.remedy),
            code=Exit.REFUSED,
        )


def _sum(memory: MemoryEstimate) -> str:
    """Explain how the memory of one engine adds up to the total."""
    once = memory.shared_weights_bytes
    each = memory.weights_bytes + memory.kv_cache_bytes + memory.overhead_bytes - once
    shared = f"shared weights {size(once)} once + " if once else ""
    return f"NEEDS = {shared}{size(each)} for each of {memory.replicas} replicas; the other columns are of one replica"


def given_parameters(flags: tuple[str, ...], runtime: dict[str, parameters.Value | None]) -> dict[str, Any]:
    """The parameters as the client takes them: typed, or as one string of flags. Both at once is a mistake.

    Typed ones go in one mapping, because a name of theirs (`timeout`) may also be an argument of the client's call.
    """
    typed = {name: value for name, value in runtime.items() if value is not None}
    if flags and typed:
        raise CommandError(
            "runtime parameters are given as options or as flags after --, not both",
            parts=[f"options: {', '.join(typed)}", f"flags: {' '.join(flags)}"],
            code=Exit.USAGE,
        )
    return {"runtime_params": parameters.joined(flags)} if flags else {"parameters": typed}


def find_models(mesh: Client, given: dict[str, Any]) -> None:
    """Replace names of models in parameters by their ids."""
    typed = given.get("parameters", {})
    for name, value in typed.items():
        if parameters.all_parameters()[name].model:
            typed[name] = find_model(mesh, value)
