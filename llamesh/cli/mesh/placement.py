"""Decides whether the members that `llamesh up --only` names can run on this machine without the others.

Members that are elsewhere are reached at LLAMESH_MEMBER_ADDRESSES. Invariant: what would wait for a member that has no address, or could be
reached by none, is refused before anything starts. Decisions are pure: settings in, words out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, ENVOY, GATEWAY, MEMBERS, QUANT, WAKER

CALLS: Mapping[str, tuple[str, ...]] = {
    GATEWAY: (CONTRACT, DOWNLOAD, CONTROLLER, QUANT),
    CONTRACT: (GATEWAY, DOWNLOAD, CONTROLLER),
    DOWNLOAD: (GATEWAY, CONTRACT, CONTROLLER, QUANT),
    CONTROLLER: (GATEWAY, CONTRACT, DOWNLOAD),
    QUANT: (GATEWAY, CONTRACT, DOWNLOAD),
    ENVOY: (GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER, WAKER, QUANT),
}
"""Which members each member calls, as llamesh/kit/member_calls.py lists them by method; the waker is a part of the controller."""


def read(words: Iterable[str]) -> frozenset[str]:
    """Return the members that --only names, each value one or several with commas between. CommandError if one is unknown."""
    given = list(words)
    named = [name.strip() for each in given for name in each.split(",") if name.strip()]
    for name in named:
        if name not in MEMBERS:
            raise _refusal(f"--only: there is no member {name}", f"members are {', '.join(MEMBERS)}")
    if given and not named:
        raise _refusal("--only names no member", f"members are {', '.join(MEMBERS)}")
    return frozenset(named)


def placed(settings: MeshSettings, named: frozenset[str]) -> MeshSettings:
    """Return the settings with the members that run here; without `only` if these are all."""
    return replace(settings, only=frozenset() if named >= set(settings.members) else named)


def check(settings: MeshSettings, *, demo: bool = False) -> None:
    """CommandError, with the remedy, if the members that are to run here cannot."""
    here = [name for name in settings.members if settings.runs(name)]
    served = [name for name in here if name != ENVOY]
    if settings.probe_port and len(served) > 1:
        raise _refusal(
            f"LLAMESH_PROBE_PORT is {settings.probe_port}, where one member alone can listen, and {listed(served)} run here",
            "unset it: `llamesh up` probes its members itself. It is for a member in a pod of its own",
        )
    if not settings.only:
        return
    if demo:
        raise _refusal("--demo needs the whole mesh on this machine", "leave out --demo or --only")
    unreached = _without_address(here, settings)
    unreachable = _without_address([name for name in settings.members if name not in here], settings)
    parts = [f"{name} calls {listed(called)}" for name, called in unreached.items()]
    lacking = {each for found in (unreached, unreachable) for called in found.values() for each in called}
    wanted = [each for each in (*MEMBERS, WAKER) if each in lacking]
    callers = {each: [name for name, called in unreachable.items() if each in called] for each in wanted}
    parts += [f"{each} is called from elsewhere, by {listed(names)}" for each, names in callers.items() if names]
    if parts:
        raise _refusal(
            f"--only {','.join(here)}: {listed(wanted)} {'has' if len(wanted) == 1 else 'have'} no address",
            f"add {','.join(f'{each}=HOST:PORT' for each in wanted)} to LLAMESH_MEMBER_ADDRESSES, which is the same on all machines",
            parts,
        )


def warnings(settings: MeshSettings) -> Sequence[str]:
    """What works only if the other members are on this machine too, with another home."""
    found = []
    if settings.runtime == "process" and settings.runs(CONTROLLER) != settings.runs(ENVOY):
        found.append(
            "engines are processes beside the controller, with Unix sockets: an Envoy on another machine does not reach them."
            " Run controller and envoy on one machine, or set LLAMESH_RUNTIME=kubernetes"
        )
    readers = [name for name in (CONTROLLER, QUANT) if name in settings.members]
    if not settings.minio_endpoint and any(settings.runs(name) != settings.runs(DOWNLOAD) for name in readers):
        found.append(
            "models are in a folder of the download service's home, which other machines do not have."
            f" Run {listed([DOWNLOAD, *readers])} on one machine, or set MINIO_ENDPOINT"
        )
    return found


def options(settings: MeshSettings) -> list[str]:
    """Return the options by which another `llamesh up` runs the same members."""
    return ["--only", ",".join(sorted(settings.only))] if settings.only else []


def subject(settings: MeshSettings) -> str:
    """What `llamesh up` says is ready: "the mesh is", or the members that run here."""
    here = [name for name in settings.members if settings.runs(name)] if settings.only else ["the mesh"]
    return f"{listed(here)} {'is' if len(here) == 1 else 'are'}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _without_address(callers: Sequence[str], settings: MeshSettings) -> dict[str, list[str]]:
    """Return the members on the other side that have no address, by those that call them."""
    found = {}
    for name in callers:
        called = [
            each
            for each in CALLS[name]
            if (member := CONTROLLER if each == WAKER else each) in settings.members
            and settings.runs(member) != settings.runs(name)
            and each not in settings.member_addresses
        ]
        if called:
            found[name] = called
    return found


def _refusal(cause: str, hint: str, parts: Sequence[str] = ()) -> CommandError:
    return CommandError(cause, parts=list(parts), hint=hint, code=Exit.USAGE)
