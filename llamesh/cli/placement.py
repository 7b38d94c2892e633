"""Options of a command that say where engine pods run, and a placement as these options.

Invariant: the options that a placement is shown as give the same placement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from llamesh.cli.failure import CommandError, Exit

if TYPE_CHECKING:
    from llamesh.v1.server_pb2 import Placement, Toleration

PLACEMENT = Group("Kubernetes", sort_key=5, help="Where engine pods run. A mesh on one machine refuses these options.")
NodeSelector = Annotated[Sequence[str], Parameter(name="--node-selector", negative="", group=PLACEMENT)]
Tolerations = Annotated[Sequence[str], Parameter(name="--toleration", negative="", group=PLACEMENT)]
Gpus = Annotated[str, Parameter(name="--gpus", group=PLACEMENT)]
PriorityClass = Annotated[str, Parameter(name="--priority-class", group=PLACEMENT)]
Image = Annotated[str, Parameter(name="--image", group=PLACEMENT)]


def read_placement(
    node_selector: Sequence[str], tolerations: Sequence[str], gpus: str, priority_class: str, image: str
) -> Placement | None:
    """Return the placement that options say; None if none is given. CommandError for a malformed one."""
    from llamesh.v1.server_pb2 import Placement

    made = Placement(priority_class=priority_class, image=image)
    for each in node_selector:
        key, sign, value = each.partition("=")
        if not sign:
            raise CommandError(f"--node-selector {each}: must be KEY=VALUE", code=Exit.USAGE)
        made.node_selector[key] = value
    for each in tolerations:
        _read_toleration(each, made.tolerations.add())
    if gpus:
        count, _, made.gpus.resource = gpus.partition(":")
        if not count.isdecimal():
            raise CommandError(f"--gpus {gpus}: must be a number, or NUMBER:RESOURCE", code=Exit.USAGE)
        made.gpus.count = int(count)
    return made if made.ListFields() else None


def _read_toleration(written: str, made: Toleration) -> None:
    """Read KEY[=VALUE][:EFFECT], as `kubectl taint` writes taints."""
    from llamesh.enum_words import camel_case, enum_words, full_name
    from llamesh.v1 import server_pb2

    words, _, effect = written.partition(":")
    made.key, sign, made.value = words.partition("=")
    made.operator = server_pb2.TOLERATION_OPERATOR_EQUAL if sign else server_pb2.TOLERATION_OPERATOR_EXISTS
    if not effect:
        return
    field = made.DESCRIPTOR.fields_by_name["effect"]
    try:
        made.effect = server_pb2.TaintEffect.Value(full_name(field, effect))
    except KeyError as error:
        known = ", ".join(map(camel_case, enum_words(field)))
        raise CommandError(
            f"--toleration {written}: {effect} is no effect of a taint; those are {known}", code=Exit.USAGE
        ) from error


def options_of(placement: Placement) -> str:
    """Return a placement as the options that give it; empty if it says nothing."""
    return " ".join(f"{name} {quote(value)}" for name, value in _options(placement))


def _options(placement: Placement) -> Iterator[tuple[str, str]]:
    for key, value in sorted(placement.node_selector.items()):
        yield "--node-selector", f"{key}={value}"
    for toleration in placement.tolerations:
        yield "--toleration", _written(toleration)
    if placement.HasField("gpus"):
        resource = placement.gpus.resource
        yield "--gpus", f"{placement.gpus.count}:{resource}" if resource else str(placement.gpus.count)
    if placement.priority_class:
        yield "--priority-class", placement.priority_class
    if placement.image:
        yield "--image", placement.image


def _written(toleration: Toleration) -> str:
    from llamesh.enum_words import camel_case
    from llamesh.v1 import server_pb2

    exists = toleration.operator == server_pb2.TOLERATION_OPERATOR_EXISTS
    effect = server_pb2.TaintEffect.Name(toleration.effect).removeprefix("TAINT_EFFECT_")
    value = "" if exists else f"={toleration.value}"
    return f"{toleration.key}{value}{f':{camel_case(effect)}' if toleration.effect else ''}"
