"""Retries of jobs: before a job starts again, looks for the files of the mesh's machine that it reads again.

A file that a command has handed over stays until its job has ended, so a retry may come too late; one below an import folder may have been
removed. Invariant: a job whose files are gone is not started again, and the refusal says how the same job is started anew. A matrix that
was given is taken in its present version, because it may have been corrected since it was refused.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.locations import handed_over_directory
from services.quant.job_sources import JobSources
from services.quant.jobs import Job, Jobs
from services.quant.plan import is_published
from services.quant.resets import done_again
from services.quant.states import JobState, StepKind
from services.quant.tables import QuantJobRow
from services.quant.workspace import Workspace

T = TypeVar("T")


class Retries:
    """Starts jobs again."""

    def __init__(self, settings: Settings, jobs: Jobs, sources: JobSources) -> None:
        self._settings = settings
        self._jobs = jobs
        self._sources = sources

    async def retry(self, job_id: str, requester_uid: str) -> Job:
        """Restart a job, as `Jobs.retry` does. Also raises SOURCE_REFUSED if a file that it reads again is gone."""
        job = await self._jobs.get(job_id)
        version = ""
        # Pods read no files of this machine.
        if not job.active and job.row.state != JobState.SUCCEEDED and self._settings.quant_engine == "embedded":
            version = await self._present_version(job)
        return await self._jobs.retry(job_id, requester_uid, matrix_version=version)

    async def _present_version(self, job: Job) -> str:
        """Return the version of the matrix that a job reads again; empty if it reads none. Raises SOURCE_REFUSED."""
        row = job.row
        kinds = {kind for kind, _ in done_again(job.steps, given_matrix=bool(row.matrix_source))}
        if not await asyncio.to_thread(Workspace(self._settings.home, row.job_id).folder.exists):
            # It starts again at its source.
            kinds |= {StepKind.FETCH, StepKind.IMATRIX}
        if StepKind.FETCH in kinds and row.source and not row.source.startswith("hf:"):
            await self._read(job, "checkpoint", row.source, self._sources.check_folder(row.source))
        if StepKind.IMATRIX not in kinds or not row.matrix_source:
            return ""
        return (
            await self._read(job, "importance matrix", row.matrix_source, self._sources.matrix(row.matrix_source))
        ).version

    async def _read(self, job: Job, what: str, source: str, reading: Awaitable[T]) -> T:
        """Return what a read of `source` returns. A refusal of the read gets the remedy."""
        try:
            return await reading
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_SOURCE_REFUSED:
                raise
            home = self._settings.home
            remedy = "put it back and retry the job, or start a new one with"
            if is_handed_over(source, home):
                remedy = "what a command has handed over is kept until the job has ended: start a new job with"
            command = anew(job, home, own_text=bool(await self._jobs.calibration_text(job.row.job_id)))
            words = f"the job reads its {what} again, and {error.message}; {remedy} `{command}`"
            raise MeshError(error.reason, words, error.metadata) from error


def anew(job: Job, home: Path, *, own_text: bool) -> str:
    """Return the command that starts the same job anew, without the types that are published.

    Words in capitals stand for what callers may not see or the mesh does not know. `own_text`: the job has a calibration text of its own.
    """
    row = job.row
    types = [each for each in row.types if not is_published(job.steps, each)]
    words = ["llamesh", "quantize", _source(row, home), "--types", ",".join(types), "--name", row.name]
    if row.matrix_source:
        words += ["--imatrix", _shown(row.matrix_source, home)]
    elif own_text:
        words += ["--calibration", "TEXTFILE"]
    elif row.importance_matrix:
        words.append("--importance-matrix")
    words += ["--allow-requantize"] * row.allow_requantize + ["--pure"] * row.pure
    if row.max_kl_divergence:
        words += ["--max-kl", f"{row.max_kl_divergence:g}"]
    return shlex.join(words)


def is_handed_over(source: str, home: Path) -> bool:
    """Whether a command has handed a file or a folder over. Any other lies where its user has put it."""
    return Path(unquote(urlsplit(source).path)).is_relative_to(handed_over_directory(home))


def _source(row: QuantJobRow, home: Path) -> str:
    """Return the source as a command names it."""
    if not row.source:
        return row.model_uuid
    return row.source if row.source.startswith("hf:") else _shown(row.source, home)


def _shown(source: str, home: Path) -> str:
    """Return a file or a folder of this machine as a command names it. Only its name is known to callers."""
    name = source.rstrip("/").rpartition("/")[2]
    return f"./{unquote(name)}" if is_handed_over(source, home) else f"file:///FOLDER/{name}"
