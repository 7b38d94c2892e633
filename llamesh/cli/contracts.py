"""`llamesh contracts`: what someone may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import UInt32

from llamesh.cli.connection import connected
from llamesh.cli.output import Column, Output, show_list, show_one, when
from llamesh.cli.printing import note

Models = Annotated[Sequence[str], Parameter(name="--model", negative="")]
CONTRACT = (
    Column("CONTRACT", lambda item: item.contract_id),
    Column("NAME", lambda item: item.display_name),
    Column("CONCURRENT", lambda item: item.max_concurrent_requests or "no limit"),
    Column("RUNNING", lambda item: item.running_requests),
    Column("MODELS", lambda item: " ".join(item.models)),
    Column("SINCE", lambda item: when(item.create_time), wide=True),
)

app = App(name="contracts", help="What someone may use.")


@app.command(name="list")
def list_contracts(*, output: Output = "table") -> None:
    """List all contracts."""
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
        show_one(mesh.contracts.create(name, concurrent=concurrent, models=models), output, CONTRACT)


@app.command
def update(
    contract: str,
    *,
    name: str | None = None,
    concurrent: UInt32 | None = None,
    models: Models = (),
    output: Output = "table",
) -> None:
    """Change a contract's limits: in force for the next request. What is not given stays.

    Parameters
    ----------
    contract
        Its id.
    name
        For people.
    concurrent
        Requests at the same time, all holders together; 0 for no limit.
    models
        A model's name; several times for several. They take the place of those before; "*" is all.
    """
    with connected() as mesh:
        changed = mesh.contracts.update(contract, name=name, concurrent=concurrent, models=models)
    show_one(changed, output, CONTRACT)


@app.command
def rm(contract: str, /, *contracts: str) -> int:
    """Remove contracts that nothing refers to."""
    from llamesh.cli.several import for_each

    with connected() as mesh:
        return for_each([contract, *contracts], lambda name: note(f"removed {mesh.contracts.delete(name).contract_id}"))
