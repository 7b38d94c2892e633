"""`llamesh keys`: tokens for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from llamesh.cli.connection import connected
from llamesh.cli.contracts import contract_column, find_contract, names_of_contracts
from llamesh.cli.lookups import find_id
from llamesh.cli.output import Column, Output, show_list, show_one, when, word
from llamesh.cli.printing import note, note_all, say
from llamesh.cli.served_names import checked_names, models_of_scopes

if TYPE_CHECKING:
    from llamesh.v1.contract_pb2 import Key


def _state(key: Key) -> str:
    """Whether it works, in words."""
    from llamesh.v1 import contract_pb2

    return word(contract_pb2.KeyState, key.state, "KEY_STATE_").lower().replace("_", " ")


KEY = (
    Column("KEY", lambda key: key.key_id),
    Column("NAME", lambda key: key.display_name),
    Column("OWNER", lambda key: key.owner, spare=True),
    Column("SCOPES", lambda key: " ".join(key.scopes)),
    Column("STATE", _state),
    Column("EXPIRES", lambda key: when(key.expire_time)),
    Column("REVOKED", lambda key: when(key.revoke_time), wide=True),
)

app = App(name="keys", help="Keys for programs.")


@app.command
def create(
    name: str,
    *,
    scope: Annotated[Sequence[str], Parameter(negative="")] = (),
    contract: str = "",
    days: Annotated[int | None, Parameter(validator=Number(gte=1, lte=3650))] = None,
    output: Output = "table",
) -> None:
    """Make a key. The token is printed this once, alone on standard output.

    Parameters
    ----------
    name
        What it is for.
    scope
        What it may do: manage, metrics, infer:*, infer:MODEL. Given several times for several; infer:* if not given.
    contract
        The contract that it carries, by its id or name; yours if not given.
    days
        Days until it ends, 1 to 3650; 90 if not given. A key that is made with a key ends with it at the latest.
    """
    with connected() as mesh:
        warnings = checked_names(mesh, models_of_scopes(scope))
        made = mesh.keys.create(name, scopes=scope, contract=find_contract(mesh, contract), days=days or 0)
        note_all(warnings)
    if output in {"json", "yaml"}:
        show_one(made, output, KEY)
    else:
        note(f"{made.key.key_id} ({' '.join(made.key.scopes)}) until {when(made.key.expire_time)}; not shown again:")
        say(made.token)


KeyName = Annotated[str, Parameter(help="Its id or name.")]


@app.command(name="list")
def list_keys(*, output: Output = "table") -> None:
    """List your keys; administrators see all."""
    with connected() as mesh:
        names = names_of_contracts(mesh) if output == "wide" else {}
        show_list(mesh.keys.list(), output, (*KEY, contract_column(names, wide=True)))


@app.command
def revoke(key: KeyName, /, *keys: KeyName) -> int:
    """End keys, and all keys that were made with them. A name that fails leaves no other undone."""
    from llamesh.cli.several import for_each

    with connected() as mesh:
        known = [(item.key_id, item.display_name) for item in mesh.keys.list() if not item.HasField("revoke_time")]
        return for_each(
            [key, *keys], lambda name: note(f"revoked {mesh.keys.revoke(find_id(name, known, 'key')).key_id}")
        )
