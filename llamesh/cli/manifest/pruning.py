"""Decides which objects an apply with `--prune` removes. Pure.

Invariant: an object is removed only if this set created it by the record, it is still the same object, and it is no longer declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from llamesh.cli.manifest.holdings import Holdings, identity, kind_of
from llamesh.cli.manifest.kinds import ORDER
from llamesh.cli.manifest.plan import Action
from llamesh.cli.manifest.record import CreatedObject, entry
from llamesh.v1 import server_pb2

MAX_CREATION = timedelta(hours=1)
"""How long after its intention an object may have been made to be that of a killed apply. It allows for clocks that differ, too."""


def to_prune(
    before: Sequence[CreatedObject], actions: Sequence[Action], held: Holdings
) -> list[tuple[CreatedObject, Any]]:
    """Entries of the record with the objects to remove; dependants first."""
    declared = {(kind_of(item.present), identity(item.present)) for item in actions if item.present is not None}
    there = _present(held)
    found = [(item, meant) for item in before if (meant := _meant(item, there)) is not None]
    gone = [pair for pair in found if (pair[0].kind, identity(pair[1])) not in declared]
    return sorted(gone, key=lambda pair: ORDER.index(pair[0].kind), reverse=True)


def is_known(before: Sequence[CreatedObject], held: Holdings) -> bool:
    """Whether the record names any object of this mesh."""
    there = _present(held)
    return any(_meant(item, there) is not None for item in before)


def _meant(item: CreatedObject, there: Mapping[tuple[str, str], Any]) -> Any:
    """Return the object of an entry, or None. For an intention: the object with its name that was created within MAX_CREATION of it."""
    if item.id:
        present = there.get((item.kind, item.id))
        return present if present is not None and entry(item.name, present).create_time == item.create_time else None
    began = datetime.fromisoformat(item.create_time)
    named = [
        present
        for (kind, _), present in there.items()
        if kind == item.kind
        and _found_by(present) == item.found_by
        and abs(datetime.fromisoformat(present.create_time.ToJsonString()) - began) <= MAX_CREATION
    ]
    return named[0] if len(named) == 1 else None


def _present(held: Holdings) -> dict[tuple[str, str], Any]:
    """The objects that may be removed."""
    everything: list[Any] = [
        *held.models.values(),
        *held.contracts,
        *held.users.values(),
        *held.servers,
        *held.keys,
    ]
    return {(kind_of(item), identity(item)): item for item in everything if not _is_revoked(item)}


def _found_by(item: Any) -> str:
    """Return the key by which a plan finds an object."""
    if isinstance(item, server_pb2.Server):
        return f"{item.spec.namespace or 'default'}/{item.model_name}"
    return str(item.display_name if kind_of(item) in {"Contract", "Key"} else identity(item))


def _is_revoked(item: Any) -> bool:
    return kind_of(item) == "Key" and bool(item.HasField("revoke_time"))
