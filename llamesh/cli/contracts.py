"""`llamesh contracts`: what someone may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.types import UInt32

from llamesh.cli.connection import connected
from llamesh.cli.lookups import find_id
from llamesh.cli.output import Column, Output, show_list, show_one, text, when
from llamesh.cli.printing import note, note_all
from llamesh.cli.served_names import checked_names

if TYPE_CHECKING:
    from llamesh.client.sync import Client

Models = Annotated[Sequence[str], Parameter(name="--model", negative="")]
CONTRACT = (
    Column("CONTRACT", lambda item: item.contract_id),
    Column("NAME", lambda item: item.display_name),
    Column("CONCURRENT", lambda item: item.max_concurrent_requests or "no limit"),
    Column("RUNNING", lambda item: item.running_requests),
    Column("MODELS", lambda item: " ".join(item.models)),
    Column("SINCE", lambda item: when(item.create_time), wide=True),
)

ContractName = Annotated[str, Parameter(help="Its id or name.")]

app = App(name="contracts", help="What someone may use.")


@app.command(name="list")
def list_contracts(*, output: Output = "table") -> None:
    """List the contracts: all for administrators, for others the one that they have."""
    with connected() as mesh:
        show_list(mesh.contracts.list(), output, CONTRACT)


@app.command
def create(name: str, *, concurrent: UInt32 = 0, models: Models = (), output: Output = "table") -> None:
    """Make a contract.

    Parameters
    ----------
    concurrent
        Requests at the same time, all holders together; 0 for no limit.
    models
        A model's name; several times for several. All if not given.
    """
    with connected() as mesh:
        warnings = checked_names(mesh, models)
        made = mesh.contracts.create(name, concurrent=concurrent, models=models)
        note_all(warnings)
    show_one(made, output, CONTRACT)


@app.command
def update(
    contract: ContractName,
    *,
    name: str | None = None,
    concurrent: UInt32 | None = None,
    models: Models = (),
    output: Output = "table",
) -> None:
    """Change a contract's limits: in force for the next request. What is not given stays.

    Parameters
    ----------
    name
        For people.
    concurrent
        Requests at the same time, all holders together; 0 for no limit.
    models
        A model's name; several times for several. They take the place of those before; "*" is all.
    """
    with connected() as mesh:
        found = find_contract(mesh, contract)
        warnings = checked_names(mesh, models)
        changed = mesh.contracts.update(found, name=name, concurrent=concurrent, models=models)
        note_all(warnings)
    show_one(changed, output, CONTRACT)


@app.command
def rm(contract: ContractName, /, *contracts: ContractName) -> int:
    """Remove contracts that nothing refers to."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def remove(name: str) -> None:
            gone = mesh.contracts.delete(find_contract(mesh, name))
            note(text(f"removed {gone.contract_id} ({gone.display_name})"))

        return for_each([contract, *contracts], remove)


def find_contract(mesh: Client, word: str) -> str:
    """The id of the contract that a word names by its id or name. Empty for no word."""
    from llamesh.client.errors import PermissionDenied

    if not word:
        return ""
    try:
        known = [(item.contract_id, item.display_name) for item in mesh.contracts.list()]
    except PermissionDenied:
        # A token for inference only, or a mesh of an earlier release, lists none: the call that needs the contract refuses the word.
        return word
    return find_id(word, known, "contract")


def names_of_contracts(mesh: Client) -> Mapping[str, str]:
    """The names of contracts by their ids; none if the mesh does not say them, so that ids are shown."""
    from llamesh.client.errors import MeshError

    try:
        return {item.contract_id: item.display_name for item in mesh.contracts.list()}
    except MeshError:
        return {}


def contract_column(names: Mapping[str, str], *, wide: bool = False) -> Column:
    """The column that shows a contract by its name, or by its id if it has none."""
    return Column("CONTRACT", lambda item: names.get(item.contract_id) or item.contract_id, wide=wide)
