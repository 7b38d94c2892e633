"""`llamesh df`, and the models that no declared server uses: how many bytes the catalogue has and which of them could be freed.

Invariant: bytes are those of objects: one for each file of a model. Files with the same bytes share one object, which goes with the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from llamesh.cli.confirmation import confirmed
from llamesh.cli.connection import connected
from llamesh.cli.output import Column, document, show_table, size
from llamesh.cli.printing import note, say

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.model_pb2 import Model
    from llamesh.v1.server_pb2 import Server


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the catalogue."""

    models: str
    """`all`; `used`: objects with a model that a declared server uses; `unused`: the others; `shared`: objects of several models; `free`:
    what the disk of the store has left, unless it is a bucket; `cached`: copies of a bucket's objects for engines."""
    count: int
    """Number of models."""
    objects: int
    """Number of distinct objects."""
    size_bytes: int
    """Bytes of the objects."""


_OF_DISKS = ("free", "cached")
_COLUMNS = (
    Column("MODELS", lambda share: share.models),
    Column("COUNT", lambda share: "" if share.models in _OF_DISKS else share.count),
    Column("OBJECTS", lambda share: "" if share.models in _OF_DISKS else share.objects),
    Column("SIZE", lambda share: size(share.size_bytes)),
)


def df(*, output: Annotated[Literal["table", "json", "yaml"], Parameter(name=("--output", "-o"))] = "table") -> None:
    """Show how many bytes the models have: all, used by servers, unused, shared by models.

    Then what the disk of the store has left, or, for models in a bucket, the copies for engines on the machine of the mesh.
    """
    with connected() as mesh:
        models = list(mesh.models.list())
        found = shares(models, used_models(mesh.servers.list()))
        store = mesh.models.store()
    if store.HasField("free_bytes"):
        found.append(Share("free", 0, 0, store.free_bytes))
    if store.HasField("cached_bytes"):
        found.append(Share("cached", 0, 0, store.cached_bytes))
    if output != "table":
        say(document([asdict(share) for share in found], output))
        return
    show_table(found, _COLUMNS)
    if found[2].count:
        note("`llamesh rm --unused` removes the unused models")


def shares(models: Sequence[Model], used: set[str]) -> list[Share]:
    """Return the parts of the catalogue in the order of `Share.models`."""
    by_object: dict[str, list[Model]] = {}
    sizes: dict[str, int] = {}
    for model in models:
        for file in model.files:
            by_object.setdefault(file.sha256, []).append(model)
            sizes[file.sha256] = file.size_bytes
    held = {key for key, those in by_object.items() if any(model.model_uuid in used for model in those)}
    parts = {
        "all": set(by_object),
        "used": held,
        "unused": set(by_object) - held,
        "shared": {key for key, those in by_object.items() if len(those) > 1},
    }
    return [
        Share(
            name,
            len({model.model_uuid for key in keys for model in by_object[key]}),
            len(keys),
            sum(sizes[key] for key in keys),
        )
        for name, keys in parts.items()
    ]


def used_models(servers: Iterable[Server]) -> set[str]:
    """Return the ids of the models that declared servers need, drafts included."""
    from llamesh.runtime_parameters import models

    return {each for server in servers for each in (server.model_uuid, *models(server.spec.parameters).values())}


def unused_models(mesh: Client) -> list[Model]:
    """Return the models that no declared server uses."""
    models = list(mesh.models.list())
    used = used_models(mesh.servers.list())
    return [model for model in models if model.model_uuid not in used]


def agreed(models: Sequence[Model], yes: bool) -> bool:
    """Show the models that are about to be removed, and ask unless `yes`. Without any there is nothing to agree to."""
    if not models:
        note("servers use all models")
        return False
    for model in models:
        note(f"{model.model_uuid}  {model.name}  {size(model.size_bytes)}")
    if yes:
        return True
    freed = {file.sha256: file.size_bytes for model in models for file in model.files}
    return confirmed(f"Remove {len(models)} models, at most {size(sum(freed.values()))}?", "llamesh rm --unused --yes")
