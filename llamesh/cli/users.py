"""`llamesh users`: who can log in."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from llamesh.cli.connection import connected, log_in
from llamesh.cli.contracts import contract_column, find_contract, names_of_contracts
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import existing_user
from llamesh.cli.output import Column, Output, show_list, show_one, when, word
from llamesh.cli.printing import note
from llamesh.cli.token_claims import claims_of, key_id_of

if TYPE_CHECKING:
    from llamesh.client.sync import Client

Role = Literal["inference", "user", "admin"]
PasswordInput = Annotated[bool, Parameter(negative="", help="Read passwords from standard input, one a line.")]


def _role(user: object) -> str:
    from llamesh.v1 import gateway_pb2

    return word(gateway_pb2.Role, user.role, "ROLE_").lower()  # type: ignore[attr-defined]


_USER = (
    Column("USER", lambda user: user.username),
    Column("ROLE", _role),
    Column("DISABLED", lambda user: "yes" if user.disabled else ""),
    Column("SINCE", lambda user: when(user.create_time), wide=True),
)


def _columns(mesh: Client) -> tuple[Column, ...]:
    name, role, *more = _USER
    return (
        name,
        role,
        contract_column(names_of_contracts(mesh)),
        *more,
        Column("CONTRACT ID", lambda user: user.contract_id, wide=True),
    )


app = App(name="users", help="Who can log in.")


@app.command(name="list")
def list_users(*, output: Output = "table") -> None:
    """List all users."""
    with connected() as mesh:
        show_list(mesh.users.list(), output, _columns(mesh))


@app.command
def create(
    username: str,
    *,
    role: Role = "user",
    contract: str = "",
    password_stdin: PasswordInput = False,
    output: Output = "table",
) -> None:
    """Create a user; the command prompts for the password.

    Parameters
    ----------
    role
        What it may do: inference only, models and servers too, or everything.
    contract
        The contract that its tokens carry, by its id or name.
    """
    password = _new_password(f"password of {username}: ", stdin=password_stdin)
    with connected() as mesh:
        made = mesh.users.create(username, password, role=role.upper(), contract=find_contract(mesh, contract))
        show_one(made, output, _columns(mesh))


@app.command
def update(
    username: str,
    *,
    role: Role | None = None,
    contract: str | None = None,
    output: Output = "table",
) -> None:
    """Change a user's role or contract. What is not given stays.

    Parameters
    ----------
    role
        What it may do: inference only, also manage models and servers (user), or all (admin).
    contract
        The contract that its tokens carry, by its id or name; empty for none.
    """
    with connected() as mesh:
        wanted = None if contract is None else find_contract(mesh, contract)
        with existing_user(mesh, username):
            changed = mesh.users.update(username, role=role.upper() if role else None, contract=wanted)
        show_one(changed, output, _columns(mesh))


@app.command
def disable(username: str) -> None:
    """Disable a user: all its tokens and keys are refused until it is enabled again."""
    with connected() as mesh, existing_user(mesh, username):
        note(f"disabled {mesh.users.update(username, disabled=True).username}")


@app.command
def enable(username: str) -> None:
    """Let a user's tokens and keys count again."""
    with connected() as mesh, existing_user(mesh, username):
        note(f"enabled {mesh.users.update(username, disabled=False).username}")


@app.command
def password(username: str, *, old: bool = True, password_stdin: PasswordInput = False) -> None:
    """Set a password: your own with the old one, or, as an administrator, anyone's with --no-old.

    Tokens from earlier logins of the user end; keys stay. If that is your own login, you are logged in again.
    """
    before = _password("password until now: ", stdin=password_stdin) if old else ""
    after = _new_password("new password: ", stdin=password_stdin)
    with connected() as mesh:
        with existing_user(mesh, username):
            mesh.users.update(username, password=after, old_password=before)
        note(f"{username} has a new password; its earlier logins have ended, its keys have not")
        if subject_of_login(mesh.transport.token) != username:
            return
        if os.environ.get("LLAMESH_TOKEN"):
            note(f"the token in LLAMESH_TOKEN has ended too: unset it, then `llamesh login {username}`")
            return
        note(f"you are logged in again {log_in(mesh, username, after)}")


@app.command
def rm(username: str, /, *usernames: str) -> int:
    """Remove users. Their tokens and keys end within a second; a later user of the same name inherits none of them."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def remove(name: str) -> None:
            with existing_user(mesh, name):
                note(f"removed {mesh.users.delete(name).username}")

        return for_each([username, *usernames], remove)


def subject_of_login(token: str) -> str:
    """Whose login a token is; empty if it is a key or cannot be read."""
    return "" if key_id_of(token) else str(claims_of(token).get("sub", ""))


def _new_password(question: str, *, stdin: bool) -> str:
    """A password that is to be set; in a terminal, where it cannot be seen, it is asked for twice."""
    first = _password(question, stdin=stdin)
    if not stdin and _password("the same again: ", stdin=False) != first:
        raise CommandError("the two passwords differ", hint="nothing was changed; run it again", code=Exit.USAGE)
    return first


def _password(question: str, *, stdin: bool) -> str:
    if stdin:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask for a password in", hint="--password-stdin", code=Exit.USAGE)
    return getpass.getpass(question)
