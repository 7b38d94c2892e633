"""`llamesh search`: GGUF models of the Hugging Face Hub, with their sizes and whether they fit here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from llamesh.cli.connection import connected
from llamesh.cli.output import Column, Output, show_list, show_table, size
from llamesh.cli.printing import note, say

if TYPE_CHECKING:
    from llamesh.v1.download_pb2 import HubModel, HubRepository

MAX_REPOSITORIES = 20
"""Maximum number of repositories of one search, as in the contract."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A model and its repository."""

    model: HubModel
    repository: HubRepository


def _fit(row: _Row) -> str:
    from llamesh.v1 import download_pb2 as pb

    return {
        pb.HUB_FIT_NOW: "yes",
        pb.HUB_FIT_IF_OTHERS_STOP: "if others stop",
        pb.HUB_FIT_NO: "no",
    }.get(row.model.fit, "")


_COLUMNS = (
    Column("SOURCE", lambda row: row.model.source),
    Column("SIZE", lambda row: size(row.model.size_bytes) if row.model.size_bytes else ""),
    Column("FITS", _fit),
    Column("HERE", lambda row: row.model.model_uuid, spare=True),
    Column("DOWNLOADS", lambda row: row.repository.downloads, spare=True),
    Column("NEEDS", lambda row: size(row.model.needed_bytes) if row.model.needed_bytes else "", wide=True),
    Column("FILES", lambda row: row.model.file_count, wide=True),
    Column("GATED", lambda row: "yes" if row.repository.gated else "", wide=True),
    Column("LICENSE", lambda row: row.repository.license, wide=True),
    Column("REVISION", lambda row: row.repository.revision[:12], wide=True),
)


def search(
    *query: str,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=MAX_REPOSITORIES))] = 5,
    output: Output = "table",
) -> None:
    """Search the Hugging Face Hub, or the mirror of HF_ENDPOINT, for GGUF models. `llamesh pull SOURCE` fetches one.

    Parameters
    ----------
    query
        Words of the repository's name.
    limit
        Maximum number of repositories, the most downloaded first; 1 to 20.
    """
    from llamesh.cli.failure import CommandError, Exit

    if not query:
        raise CommandError("what is to be searched for?", hint="llamesh search QUERY", code=Exit.USAGE)
    from llamesh.client.errors import SourceUnavailable

    with connected() as mesh:
        try:
            repositories = mesh.models.search(" ".join(query), limit=limit).repositories
        except SourceUnavailable as error:
            hint = "check HF_ENDPOINT and the network of the mesh's machine, then search again"
            raise CommandError(error.message, hint=hint, code=Exit.UNAVAILABLE) from error
    if output in {"json", "yaml"}:
        show_list(repositories, output, ())
        return
    rows = [_Row(model, repository) for repository in repositories for model in repository.models]
    if output == "name":
        for row in rows:
            say(row.model.source)
    else:
        show_table(rows, [column for column in _COLUMNS if output == "wide" or not column.wide], keep=output == "wide")
    for repository in repositories:
        if repository.problem:
            note(f"{repository.repository}: {repository.problem}")
    if not rows:
        note("nothing was found")
