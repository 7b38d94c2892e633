"""Fetches the files of a model from its source into the object store, staged: one after the other, with one progress.

If a model has several files, all headers are read first (`_survey`): each file is opened, and closed after its header. So a missing or
foreign file is refused before gigabytes are fetched, wherever it is in the list, and so is a model for which the store has no room as a
whole. A run that goes on after a restart reads them again.

Invariant: the staged files have the digests that the source announces, or nothing is staged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from llamesh.kit.logs import report_failure
from llamesh.kit.objects import StagedObject, StoreError
from services.download.bandwidth import Bandwidth
from services.download.continuation import continued
from services.download.early_check import read_header
from services.download.model_parts import ModelCheck, check_file
from services.download.progress import Progress
from services.download.sources import FileRole, Source, SourceFile, SourceObject
from services.download.staging import Staging
from services.download.store_retries import StoreRetries
from services.download.tables import NO_PROJECTOR, TransferRow
from services.download.verification import check_digest

MAX_NAME = 1024
"""Maximum length of the recorded name of a file."""


Opened = Callable[[TransferRow, SourceObject], Awaitable[None]]
"""Records what the first file of a transfer says once it is open."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file of a model whose bytes are in the store, not published yet."""

    role: FileRole
    name: str
    staged: StagedObject


class Fetches:
    """Fetches models. `clock` is monotonic, in seconds."""

    def __init__(self, source: Source, staging: Staging, bandwidth: Bandwidth, clock: Callable[[], float]) -> None:
        self._source = source
        self._staging = staging
        self._bandwidth = bandwidth
        self._clock = clock
        self.running: dict[str, tuple[TransferRow, Progress]] = {}
        """The transfers whose bytes arrive, by model."""

    async def fetch(self, row: TransferRow, retries: StoreRetries, opened: Opened) -> list[StagedFile]:
        """Stage all files of a transfer. The caller discards them. `opened` gets the first file once it is open.

        Raises SourceError, StoreError, GgufError and MeshError.
        """
        staged: list[StagedFile] = []
        try:
            files = await self._files(row)
            total = await self._survey(row, files) if len(files) > 1 else 0
            for number in range(1, len(files) + 1):
                await self._stage(row, files, number, total, retries, opened, staged)
        except BaseException:
            # The source's close can fail or be cancelled when all bytes are staged.
            await discard(staged)
            raise
        finally:
            self.running.pop(row.model_uuid, None)
        return staged

    async def _files(self, row: TransferRow) -> list[SourceFile]:
        """Return the files of the model: those of its source, with the projector and the adapters that the caller gave."""
        files = list(await self._source.files(row.source))
        if row.projector:
            files = [file for file in files if file.role is not FileRole.PROJECTOR]
        if row.projector not in ("", NO_PROJECTOR):
            files.append(SourceFile(row.projector, FileRole.PROJECTOR))
        return files + [SourceFile(address, FileRole.ADAPTER, name) for name, address in row.adapters]

    async def _survey(self, row: TransferRow, files: Sequence[SourceFile]) -> int:
        """Check the headers of all files and the room for them, and return the sum of their sizes; 0 if one is unknown."""
        sizes: list[int | None] = []
        model, complete = ModelCheck([file.role for file in files]), True
        for file in files:
            async with self._source.open(file.address) as found:
                async with aclosing(continued(self._bandwidth.limited(found), self._clock)) as chunks:
                    header = await read_header(chunks, found.size)
                found.end_stream()
                sizes.append(found.size)
            # A header that is too large to be read early is checked when all bytes are staged.
            complete = complete and header is not None
            if complete and header is not None:
                model.add(header)
        if complete:
            model.metadata()
        known = sum(size or 0 for size in sizes)
        await self._staging.check_room(row, known)
        return 0 if None in sizes else known

    async def _stage(
        self,
        row: TransferRow,
        files: Sequence[SourceFile],
        number: int,
        total: int,
        retries: StoreRetries,
        opened: Opened,
        staged: list[StagedFile],
    ) -> None:
        """Stage one file and add it to `staged`."""
        file = files[number - 1]
        async with self._source.open(file.address) as found:
            required = row.expected_sha256 if number == 1 else ""
            check_digest(found.sha256, required)
            if number == 1:
                await opened(row, found)
                size = total if len(files) > 1 else found.size or 0
                self.running[row.model_uuid] = (row, Progress(size, self._clock))
            progress = self.running[row.model_uuid][1]

            def count(length: int) -> None:
                progress.add(length)
                retries.add(length)

            def present(length: int) -> None:
                progress.begin_at(progress.done + length)
                retries.add(length)

            if number == 1:
                retries.begin()
            else:
                retries.add(0)
            weights = sum(each.role is FileRole.WEIGHTS for each in files)
            check = partial(check_file, role=file.role, number=number, weights=weights)
            name = file.name or "".join(filter(str.isprintable, found.name))[:MAX_NAME]
            limited = self._bandwidth.limited(found)
            done = await self._staging.stage(row, number, limited, check, count, present)
            staged.append(StagedFile(file.role, name, done))
            retries.staged()
            check_digest(done.sha256, required or found.sha256)


async def discard(files: Iterable[StagedFile]) -> None:
    """Remove staged bytes. If that fails, the store's next sweep does it; the result of the transfer stays the same."""
    for file in files:
        try:
            await file.staged.discard()
        except StoreError as error:
            report_failure("discard staged bytes", error)
