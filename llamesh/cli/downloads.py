"""`llamesh downloads ls, pause, resume, cancel, retry, rm`: models on their way into the mesh."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from llamesh.cli.confirmation import confirmed
from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import MAX_REASON, Column, Output, show_list, show_one, size, text, when, word
from llamesh.cli.printing import note
from llamesh.cli.progress import followed, left, percent
from llamesh.cli.remedies import of_failed_download, remedy_for
from llamesh.model_addresses import is_address

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.download_pb2 import Download

app = App(name="downloads", help="Models on their way into the mesh.")
ModelName = Annotated[str, Parameter(help="The id of the model, its name or an alias.")]


_NEXT = {
    "PAUSED": "`llamesh downloads resume {}` lets it go on",
    "QUEUED": "`llamesh pull --uuid {}` waits for it",
    "RUNNING": "`llamesh pull --uuid {}` waits for it",
    "CANCELLED": "`llamesh downloads retry {}` fetches it again",
}
"""How to get a model whose download has not brought it, by the state of the download."""


def _state(download: Download) -> str:
    from llamesh.v1 import download_pb2

    return word(download_pb2.DownloadState, download.state, "DOWNLOAD_STATE_")


def _done(download: Download) -> str:
    if not download.bytes_total:
        return size(download.bytes_done) if download.bytes_done else ""
    return f"{percent(download)}% of {size(download.bytes_total)}"


def remedy_of(download: Download) -> str:
    """Return what to do about a download that has failed, as for an error that a call gives; "" for every other download."""
    if _state(download) != "FAILED":
        return ""
    return remedy_for(download.error.reason, of_failed_download(download), download.error.remedy)


DOWNLOAD = (
    Column("MODEL", lambda download: download.model_uuid),
    Column("STATE", _state),
    Column("DONE", _done),
    Column(
        "RATE", lambda download: f"{size(download.bytes_per_second)}/s" if download.bytes_per_second else "", spare=True
    ),
    Column("LEFT", left, spare=True),
    Column("WHY", lambda download: download.error.message, below=True, most=MAX_REASON),
    Column("HINT", remedy_of, wide=True),
    Column("SOURCE", lambda download: download.source, wide=True),
    Column("STARTED", lambda download: when(download.create_time), wide=True),
)


State = Literal["queued", "running", "verifying", "paused", "succeeded", "failed", "cancelled"]
"""What `--state` takes: the states of the contract."""


@app.default
def show(*, state: State | None = None, output: Output = "table") -> None:
    """List the downloads, newest first.

    Parameters
    ----------
    state
        Only downloads in this state.
    """
    list_(state=state, output=output)


@app.command(name="ls", alias="list")
def list_(*, state: State | None = None, output: Output = "table") -> None:
    """List the downloads, newest first.

    Parameters
    ----------
    state
        Only downloads in this state.
    """
    with connected() as mesh:
        found = [download for download in mesh.models.downloads() if state in (None, _state(download).lower())]
    show_list(found, output, DOWNLOAD)
    if state and not found and output in {"table", "wide"}:
        note(f"no download is {state.upper()}; `llamesh downloads` lists all")
    if output == "table" and any(_state(download) == "FAILED" for download in found):
        note(
            "`llamesh downloads -o wide` says all of why they failed, and what to do; `llamesh downloads rm --failed` removes their records"
        )


@app.command
def pause(model: ModelName, *, output: Output = "table") -> None:
    """Stop a download until it is resumed; the parts that have come are kept for LLAMESH_DOWNLOAD_PAUSED_HOURS, a week by default."""
    with connected() as mesh:
        show_one(mesh.models.pause(_meant(mesh, model)), output, DOWNLOAD)


@app.command
def resume(model: ModelName, *, wait: bool = True, output: Output = "table") -> None:
    """Let a paused download go on.

    Parameters
    ----------
    wait
        Wait until the model can be served.
    """
    with connected() as mesh:
        pull = mesh.models.resume(_meant(mesh, model))
        if wait:
            followed(pull)
        show_one(mesh.models.pulling(pull.model_uuid).download if wait else pull.download, output, DOWNLOAD)


@app.command
def cancel(model: ModelName, *, output: Output = "table") -> None:
    """Stop a download; what has come so far is thrown away."""
    with connected() as mesh:
        uuid = _meant(mesh, model)
        if mesh.models.pulling(uuid).ended:
            note(text(f"the download of {uuid} has ended already; nothing was done"))
        show_one(mesh.models.cancel(uuid), output, DOWNLOAD)


@app.command
def retry(model: ModelName, *, wait: bool = True, output: Output = "table") -> None:
    """Fetch a model again from the same source after its download has failed or was cancelled.

    Parameters
    ----------
    wait
        Wait until the model can be served.
    """
    with connected() as mesh:
        uuid = _meant(mesh, model)
        mesh.models.pulling(uuid)  # ModelNotFound if there is no such download: a pull of an unknown id would start one
        pull = mesh.models.pull("", uuid=uuid)
        if pull.ended:
            # A download that had failed is queued again, so it has not ended.
            note(text(f"the download of {uuid} has succeeded already; nothing was done"))
            path = [] if not pull.download.source or is_address(pull.download.source) else ["PATH"]
            note(text(f"`{shlex.join(['llamesh', 'pull', *path, '--uuid', uuid, '--update'])}` fetches it again"))
        if wait:
            followed(pull)
        show_one(mesh.models.pulling(pull.model_uuid).download, output, DOWNLOAD)


@app.command
def rm(
    *models: ModelName,
    failed: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    output: Output = "table",
) -> int:
    """Remove downloads that have ended from the list; a model that one brought stays. A name that fails leaves no other undone.

    Parameters
    ----------
    failed
        Remove all downloads that have failed, after showing them and asking.
    yes
        Do not ask.
    """
    from llamesh.cli.several import for_each, names_or_all

    names_or_all("llamesh downloads rm", models, "--failed", every=failed)
    with connected() as mesh:

        def remove(uuid: str) -> None:
            gone = mesh.models.delete_download(uuid)
            if output == "table":
                note(f"removed the download of {gone.model_uuid}")
            else:
                show_one(gone, output, DOWNLOAD)

        if not failed:
            return for_each(models, lambda name: remove(_meant(mesh, name)))
        found = [download.model_uuid for download in mesh.models.downloads() if _state(download) == "FAILED"]
        return for_each(found, remove) if _agreed(found, yes) else Exit.OK


def _agreed(models: Sequence[str], yes: bool) -> bool:
    """Show the models whose failed downloads are about to be removed, and ask unless `yes`."""
    if not models:
        note("no download has failed")
        return False
    for model in models:
        note(text(model))
    return yes or confirmed(
        f"Remove the records of {len(models)} failed downloads?", "llamesh downloads rm --failed --yes"
    )


def _meant(mesh: Client, name: str) -> str:
    """The id of the model that is meant by an id or a name of a download, or by any name of a model."""
    from llamesh.cli.lookups import find_id
    from llamesh.client.names import names_of, resolve

    downloads = [(item.model_uuid, item.name) for item in mesh.models.downloads()]
    meant = resolve(name, downloads)
    if any(meant == uuid for uuid, _ in downloads):
        return meant
    return find_id(name, [pair for model in mesh.models.list() for pair in names_of(model)] + downloads, "download")


def refuse_undownloaded(mesh: Client, name: str) -> None:
    """Refuse the id or name of a model whose download has brought nothing yet, with its state, its reason and its remedy.

    An outage is no answer, so its error is raised.
    """
    from llamesh.client import errors

    try:
        found = next((item for item in mesh.models.downloads() if name in (item.model_uuid, item.name)), None)
    except errors.ScopeMissing:
        # The caller may not list them.
        return
    if found is not None and _state(found) != "SUCCEEDED":
        raise CommandError(
            f"the model {text(name)} is not there: its download is {_state(found)}",
            parts=[text(found.error.message)] if found.error.message else (),
            hint=remedy_of(found)
            or _NEXT.get(_state(found), "`llamesh downloads` lists the downloads").format(found.model_uuid),
            code=Exit.NOT_FOUND,
        )
