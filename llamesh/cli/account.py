"""`llamesh login, usage, why, version`: the login, used tokens, recorded decisions, versions."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from llamesh import __version__
from llamesh.cli.connection import connected, log_in, other_service
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Column, Output, document, show_list, show_one, size, when
from llamesh.cli.printing import note, say
from llamesh.cli.remedies import remedy_for

if TYPE_CHECKING:
    from llamesh.v1.contract_pb2 import Decision

USAGE = (
    Column("DAY", lambda item: item.day),
    Column("SUBJECT", lambda item: item.subject),
    Column("MODEL", lambda item: item.model_name),
    Column("REQUESTS", lambda item: item.requests),
    Column("PROMPT", lambda item: item.prompt_tokens),
    Column("COMPLETION", lambda item: item.completion_tokens),
    Column("CONTRACT", lambda item: item.contract_id, wide=True),
    Column("USER ID", lambda item: item.user_uid, wide=True),
    Column("UNKNOWN", lambda item: item.unknown_requests, wide=True),
)
DECISION = (
    Column("DECISION", lambda item: item.decision_id),
    Column("TIME", lambda item: when(item.create_time)),
    Column("SUBJECT", lambda item: item.subject),
    Column("ACTION", lambda item: item.action),
    Column("OBJECT", lambda item: item.object),
    Column("ALLOWED", lambda item: "yes" if item.allowed else "no"),
)


def login(
    username: str = "",
    *,
    url: str = "",
    password_stdin: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Get a token for a name and a password and keep it in the profile (readable for you only).

    Parameters
    ----------
    username
        Asked for if not given.
    url
        The mesh, for instance http://localhost:8200. LLAMESH_URL or the profile's if not given.
    password_stdin
        Read the password from standard input: for programs.
    """
    from llamesh.cli.refusals import translate
    from llamesh.client.errors import MeshError

    asking = sys.stdin.isatty() and not password_stdin
    if not asking and not password_stdin:
        raise CommandError(
            "there is no terminal to ask in", hint="llamesh login NAME --password-stdin", code=Exit.USAGE
        )
    if not username and not asking:
        raise CommandError("who is to log in?", hint="llamesh login NAME --password-stdin", code=Exit.USAGE)
    with connected(url) as mesh:
        if not username:
            sys.stderr.write(f"user name at {mesh.profile.url}: ")
            sys.stderr.flush()
            username = sys.stdin.readline().strip()
        _warn_of_clear_text(mesh.profile.url)
        prompt = f"password of {username} at {mesh.profile.url}: "
        password = getpass.getpass(prompt) if asking else sys.stdin.readline().rstrip("\n")
        try:
            note(f"{username} is logged in {log_in(mesh, username, password)}")
        except MeshError as error:
            if error.reason in {"UNAUTHENTICATED", "NOT_IMPLEMENTED"}:
                # The management port asks for no token here, and knows the call.
                raise other_service(mesh.profile.url, error.metadata, "--url ") from error
            raise translate(error, mesh.profile.url) or error from error
        _warn_of_another(mesh.profile.url)


def _warn_of_clear_text(url: str) -> None:
    """Warn, before a password is typed, that it crosses a network unencrypted."""
    from llamesh.client.profile import on_this_machine

    if not url.startswith("https://") and not on_this_machine(url):
        note(f"warning: {url} is not https: the password and the token cross the network in clear (llamesh tls init)")


def _warn_of_another(url: str) -> None:
    """Warn if later commands use another mesh, because the environment names it."""
    from llamesh.client.contexts import DEFAULT, NoMeshSelectedError
    from llamesh.client.profile import load_profile

    try:
        used = load_profile().url
    except NoMeshSelectedError:
        used = ""
    if used == url:
        return
    name = next((name for name in ("LLAMESH_URL", "LLAMESH_CONTEXT", "LLAMESH_HOME") if os.environ.get(name)), "")
    if name:
        note(f"{name} is set, so other commands use the mesh that it names; to use this one: unset {name}")
    else:
        note(f"other commands use the selected context; to use this mesh: llamesh context use {DEFAULT}")


def usage(
    *,
    subject: str = "",
    days: Annotated[float | None, Parameter(validator=Number(gt=0, lte=36500))] = None,
    output: Output = "table",
) -> None:
    """List requests and tokens by day, subject and model. Requests without a key are not counted.

    Parameters
    ----------
    subject
        Only this one.
    days
        Only the last so many; 30 if not given.
    """
    with connected() as mesh:
        show_list(mesh.usage(subject=subject, days=days), output, USAGE)


def why(
    decision: str = "", *, refused: Annotated[bool, Parameter(negative="")] = False, output: Output = "table"
) -> None:
    """Say why something was allowed or refused.

    Parameters
    ----------
    decision
        Its id; the latest decisions are listed if not given.
    refused
        List only refusals.
    """
    with connected() as mesh:
        if not decision:
            show_list(_latest(mesh.decisions(refused_only=refused)), output, DECISION)
            return
        found = mesh.decision(decision)
    show_one(found, output, DECISION)
    if output == "table":
        _explain(found)


def version(*, output: Output = "table") -> None:
    """Print the versions of the command and of the mesh it talks to.

    Parameters
    ----------
    output
        json: `version`, `mesh_version` (null if no mesh answers) and `mesh_url`.
    """
    from llamesh.client.errors import MeshError

    machine = output in {"json", "yaml"}
    if not machine:
        say(f"llamesh {__version__}")
    with connected() as mesh:
        url, found = mesh.profile.url, None
        try:
            found = mesh.health(timeout=2).version
        except MeshError:
            note(f"no mesh answers at {url}")
    if machine:
        say(document({"version": __version__, "mesh_version": found, "mesh_url": url}, output))
    elif found is not None:
        say(f"mesh    {found} at {url}")


def _latest(decisions: object, count: int = 50) -> list[Decision]:
    from itertools import islice

    return list(islice(decisions, count))  # type: ignore[call-overload]


def _explain(decision: Decision) -> None:
    for refusal in decision.refusals:
        say(f"{refusal.reason}: {refusal.message}")
        for key, value in sorted(refusal.metadata.items()):
            say(f"  {key} = {value}")
        if remedy := remedy_for(refusal.reason, refusal.metadata, refusal.remedy):
            say(f"  {remedy}")
    if decision.HasField("memory"):
        memory = decision.memory
        say(
            f"memory {size(memory.total_bytes)}: {memory.replicas} x (weights {size(memory.weights_bytes)}"
            f" + KV cache {size(memory.kv_cache_bytes)} + overhead {size(memory.overhead_bytes)})"
            + (f", of which {size(memory.shared_weights_bytes)} count once" if memory.shared_weights_bytes else "")
        )
