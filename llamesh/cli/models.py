"""`llamesh models, pull, rm`: what can be served, and how it comes in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Column, Output, note, show_list, show_one, size, text, when, word

if TYPE_CHECKING:
    from llamesh.client.sync import Pull
    from llamesh.v1.download_pb2 import Download
    from llamesh.v1.model_pb2 import Model

MODEL = (
    Column("MODEL", lambda model: model.model_uuid),
    Column("NAME", lambda model: model.name),
    Column("SIZE", lambda model: size(model.size_bytes)),
    Column("QUANT", lambda model: model.gguf.quantisation),
    Column("STATE", lambda model: "damaged" if model.problem else "ready"),
    Column("CONTEXT", lambda model: model.gguf.context_length or ""),
    Column("ARCHITECTURE", lambda model: model.gguf.architecture, wide=True),
    Column("SOURCE", lambda model: model.source, wide=True),
    Column("PROBLEM", lambda model: model.problem, wide=True),
    Column("ADDED", lambda model: when(model.create_time), wide=True),
    Column("SHA256", lambda model: model.sha256, wide=True),
)


def models(*, output: Output = "table") -> None:
    """List the models that can be served."""
    with connected() as mesh:
        show_list(mesh.models.list(), output, MODEL)


def pull(
    source: str = "",
    *,
    name: str = "",
    uuid: str = "",
    sha256: str = "",
    wait: bool = True,
    output: Output = "table",
) -> None:
    """Fetch a model into the mesh.

    Parameters
    ----------
    source
        An https address of a GGUF file, or a file below LLAMESH_HOME/import. Empty: the Quant service, by --uuid.
    name
        The model's name; the file's name if not given.
    uuid
        The model's id; made from the name if not given.
    sha256
        What the file's SHA-256 must be.
    wait
        Wait until the model can be served.
    """
    if not source and not uuid:
        raise CommandError("what is to be fetched?", hint="llamesh pull https://.../model.gguf", code=Exit.USAGE)
    with connected() as mesh:
        download = mesh.models.pull(source, uuid=uuid, name=name, sha256=sha256)
        if wait:
            try:
                model = _followed(download)
            except KeyboardInterrupt:
                note(f"the mesh goes on fetching {download.model_uuid}; `llamesh models` lists it when it is there")
                raise
            show_one(model, output, MODEL)
        else:
            from llamesh.v1 import download_pb2

            columns = (
                Column("MODEL", lambda item: item.model_uuid),
                Column("STATE", lambda item: word(download_pb2.DownloadState, item.state, "DOWNLOAD_STATE_")),
            )
            show_one(download.download, output, columns)


def rm(model: str) -> None:
    """Remove a model that no server uses.

    Parameters
    ----------
    model
        Its id or name.
    """
    with connected() as mesh:
        gone = mesh.models.delete(mesh.models.find(model))
        note(f"removed {gone.model_uuid} ({size(gone.size_bytes)})")


def _followed(pull: Pull) -> Model:
    """Wait for a model, with a bar where there is a terminal to draw it on. Says why it waits, each reason once."""
    waiting = _Waiting()
    if not sys.stderr.isatty():
        return pull.wait(on_progress=waiting.look)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(pull.model_uuid, total=None)

        def look(now: Download) -> None:
            # What is written to standard error meanwhile is put above the bar.
            waiting.look(now)
            progress.update(task, completed=now.bytes_done, total=now.bytes_total or None)

        return pull.wait(on_progress=look)


class _Waiting:
    """Says why a download waits, once until the reason changes."""

    def __init__(self) -> None:
        self._said = ""

    def look(self, now: Download) -> None:
        """Look at the download as it is now."""
        from llamesh.v1 import download_pb2

        reason = now.error.message if now.state == download_pb2.DOWNLOAD_STATE_QUEUED else ""
        if reason and reason != self._said:
            self._said = reason
            note(text(f"{now.model_uuid} {reason}"))
