"""`llamesh context`: the meshes that this user works with, each with its address and login, and which of them commands use."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from llamesh.cli.connection import not_an_address, not_selected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Column, document, show_table
from llamesh.cli.printing import note, say
from llamesh.client import contexts
from llamesh.client.contexts import DEFAULT, VARIABLE, ContextNotFoundError
from llamesh.client.profile import Profile, save_profile, stored_profile, with_scheme

if TYPE_CHECKING:
    from collections.abc import Callable

Form = Annotated[Literal["table", "json", "yaml", "name"], Parameter(name=("--output", "-o"), help="How to print.")]
Name = Annotated[str, Parameter(help="Its name.")]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A context without its token."""

    name: str
    selected: bool
    url: str
    inference_url: str
    login: str


_COLUMNS = (
    Column("NAME", lambda item: item.name),
    Column("SELECTED", lambda item: "yes" if item.selected else ""),
    Column("MESH", lambda item: item.url or "the mesh of this machine"),
    Column("LOGIN", lambda item: item.login),
)

app = App(name="context", help="The meshes that you work with.")


@app.default
@app.command(name="list")
def list_contexts(*, output: Form = "table") -> None:
    """List the contexts: names of meshes, with an address and a login each. Tokens are not shown."""
    try:
        selected = contexts.selected_context()
    except ContextNotFoundError as error:
        note(str(error))
        selected = ""
    found = [_shown(name, selected) for name in contexts.context_names()]
    if output in {"json", "yaml"}:
        say(document([asdict(item) for item in found], output))
    elif output == "name":
        for item in found:
            say(item.name)
    else:
        show_table(found, _COLUMNS)
    for variable in ("LLAMESH_URL", "LLAMESH_HOME"):
        if os.environ.get(variable, "").strip() and not (variable == "LLAMESH_HOME" and os.environ.get(VARIABLE)):
            note(f"{variable} is set: commands use the mesh that it names")
            break


@app.command
def add(
    name: Name,
    url: str,
    /,
    *,
    inference_url: str = "",
    use: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Keep the address of a mesh under a name.

    Parameters
    ----------
    url
        Its management address, for instance https://mesh.example:8200.
    inference_url
        Its inference address, without /v1, if it is not port 8080 of the same host.
    use
        Select it, so that commands use it.
    """
    if name in contexts.context_names():
        raise CommandError(
            f"there is a context {name!r}",
            hint=f"llamesh context rm {name}" if name != DEFAULT else "choose another name",
            code=Exit.USAGE,
        )
    if not contexts.is_name(name):
        raise CommandError(f"{name!r} is not a name of a context", hint=contexts.NAME_RULE, code=Exit.USAGE)
    save_profile(Profile(_address(url), inference_url=_address(inference_url) if inference_url else ""), context=name)
    if use:
        contexts.select_context(name)
        _say_overridden(name)
        note(f"commands use {name}; `llamesh login` logs in there")
    else:
        note(f"{name} is kept; `llamesh context use {name}` selects it, {VARIABLE}={name} in one shell only")


@app.command
def use(name: Name, /) -> None:
    """Select the mesh that commands use, in all shells. `default`: the mesh of this machine, or of the last login."""
    _existing(lambda: contexts.select_context(name))
    _say_overridden(name)
    kept = stored_profile(context=name)
    note(f"commands use {name}" + (f" ({kept.url})" if kept else ""))


@app.command
def rm(name: Name, /, *names: Name) -> int:
    """Forget contexts with their logins. The meshes are not touched, and the tokens keep their rights until they end."""
    from llamesh.cli.several import for_each

    def remove(each: str) -> None:
        if each == DEFAULT:
            raise CommandError("the context `default` always exists", code=Exit.USAGE)
        _existing(lambda: contexts.remove_context(each))
        note(f"{each} is forgotten")

    return for_each((name, *names), remove)


def _existing(act: Callable[[], None]) -> None:
    try:
        act()
    except ContextNotFoundError as error:
        raise not_selected(error) from error


def _say_overridden(name: str) -> None:
    """Note that this shell uses another mesh, because its environment names it."""
    for variable in ("LLAMESH_URL", VARIABLE, "LLAMESH_HOME"):
        value = os.environ.get(variable, "").strip()
        if variable == VARIABLE and value == name:
            return
        if value:
            note(f"{variable} is set, so this shell uses what it names; to use {name} here: unset {variable}")
            return


def _address(text: str) -> str:
    """Complete and check an address that a person wrote."""
    url = with_scheme(text.strip().rstrip("/"))
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment or parts.path:
        raise not_an_address(text)
    return url


def _shown(name: str, selected: str) -> _Shown:
    kept = stored_profile(context=name) or Profile("")
    return _Shown(name, name == selected, kept.url, kept.inference_url, _login(kept.token))


def _login(token: str) -> str:
    """Whose login is kept and until when; empty if there is none."""
    from llamesh.cli.output import text
    from llamesh.cli.token_claims import claims_of, end_of

    if not token:
        return ""
    who, ends = str(claims_of(token).get("sub", "")) or "kept", end_of(token)
    return text(f"{who} until {ends.astimezone():%Y-%m-%d %H:%M}" if ends else who)
