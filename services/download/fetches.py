"""Fetches the files of a model from its source into the object store, staged: one after the other, with one progress.

If a model has several files, all headers are read first (`_survey`): each file is opened, and closed after its header. So a missing or
foreign file is refused before gigabytes are fetched, wherever it is in the list, and so is a model for which the store has no room as a
whole. A run that goes on after a restart reads them again. A file whose bytes the store has is not fetched (`present_objects`).

Invariant: the staged files have the digests that the source announces, or nothing is staged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from llamesh.kit.logs import report_failure
from llamesh.kit.objects import StagedObject, StoreError
from llamesh.kit.outages import until_written
from llamesh.v1.quant_pb2 import QuantReport
from services.download.bandwidth import Bandwidth
from services.download.continuation import continued
from services.download.early_check import Check, read_header
from services.download.model_parts import Header, ModelCheck, check_file
from services.download.present_objects import PresentObject, PresentObjects, source_version
from services.download.progress import Progress
from services.download.room import FileRoom, Room
from services.download.source_holds import SourceHolds
from services.download.sources import FileRole, ModelFacts, Source, SourceError, SourceFile, SourceObject
from services.download.staging import Staging
from services.download.store_retries import StoreRetries
from services.download.tables import NO_FILE, TransferRow
from services.download.verification import check_digest, staged_header

MAX_NAME = 1024
"""Maximum length of the recorded name of a file."""

Opened = Callable[[TransferRow, SourceObject, int], Awaitable[None]]
"""Records what the first file of a transfer says once it is open, and the bytes of all files, 0 if they are unknown."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file of a model whose bytes are in the store, not published yet."""

    role: FileRole
    name: str
    staged: StagedObject
    source_version: str
    """See `present_objects`."""
    quality: QuantReport | None
    """See SourceObject."""
    facts: ModelFacts
    """What the source says of the model beside its files; that of the first file counts."""


class Fetch:
    """A fetch under way: its transfer, the files of the model, their common progress and what is staged of them.

    `used` gets the length of what is written; `clock` is monotonic, in seconds. The files are numbered from 1.
    """

    def __init__(
        self,
        row: TransferRow,
        files: Sequence[SourceFile],
        retries: StoreRetries,
        used: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self.row = row
        self.files = files
        self.progress = Progress(0, clock)
        self.staged: list[StagedFile] = []
        self._retries = retries
        self._used = used
        self._clock = clock
        self._weights = sum(file.role is FileRole.WEIGHTS for file in files)

    def begin(self, total: int) -> None:
        """Note that the first file is open; `total` is the size of all files, 0 if it is unknown."""
        self.progress = Progress(total, self._clock)
        self._retries.begin()

    def expected_sha256(self, number: int) -> str:
        """Return the SHA-256 that the request gave for a file, "" if it gave none. It can give that of the first file only."""
        return self.row.expected_sha256 if number == 1 else ""

    def check(self, number: int) -> Check:
        """Return the check of the header of a file."""
        return partial(check_file, role=self.files[number - 1].role, number=number, weights=self._weights)

    def received(self, length: int) -> None:
        """Count bytes that have arrived and are stored; 0 shows that the store works."""
        self.progress.add(length)
        self._used(length)
        self._retries.add(length)

    def present(self, length: int) -> None:
        """Count bytes that an earlier run has stored."""
        self.progress.begin_at(self.progress.done + length)
        self._retries.add(length)

    def add(self, number: int, found: SourceObject, staged: StagedObject) -> None:
        """Note that all bytes of a file are staged. Its name is the given one, else that of the source."""
        file = self.files[number - 1]
        shown = file.name or "".join(filter(str.isprintable, found.name))[:MAX_NAME]
        version = source_version(file.address, found)
        self.staged.append(StagedFile(file.role, shown, staged, version, found.quality, file.facts))
        self._retries.staged()


class Fetches:
    """Fetches models. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        source: Source,
        staging: Staging,
        room: Room,
        present: PresentObjects,
        bandwidth: Bandwidth,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._staging = staging
        self._room = room
        self._present = present
        self._bandwidth = bandwidth
        self._clock = clock
        self.holds = SourceHolds(clock)
        self.running: dict[str, Fetch] = {}
        """The fetches whose bytes arrive, by model."""
        self._answered: set[str] = set()
        """The models of the fetches whose source has answered."""

    async def fetch(self, row: TransferRow, retries: StoreRetries, opened: Opened) -> list[StagedFile]:
        """Stage all files of a transfer. The caller discards them. `opened` gets the first file once it is open.

        Also after an error, `row` has the last progress. Raises SourceError, StoreError, GgufError and MeshError.
        """

        def used(length: int) -> None:
            self._room.use(row.model_uuid, length)
            self.holds.moved(row.model_uuid)

        fetch = Fetch(row, await self.files(row), retries, used, self._clock)
        try:
            total = await self._survey(row, fetch.files) if len(fetch.files) > 1 else None
            for number, file in enumerate(fetch.files, 1):
                async with self._source.open(file.address) as found:
                    check_digest(found.sha256, fetch.expected_sha256(number))
                    self._note_opened(row, file, found)
                    if number == 1:
                        whole = (found.size or 0) if total is None else total
                        await opened(row, found, whole)
                        fetch.begin(whole)
                        self.running[row.model_uuid] = fetch
                    await self._stage(fetch, number, found)
        except BaseException as error:
            if isinstance(error, SourceError) and row.model_uuid in self._answered:
                error.transient |= error.unreachable
            # The source's close can fail or be cancelled when all bytes are staged.
            await discard(fetch.staged)
            raise
        finally:
            self._answered.discard(row.model_uuid)
            if self.running.pop(row.model_uuid, None) is not None:
                row.bytes_done, row.bytes_total = fetch.progress.done, fetch.progress.total
            self._room.release(row.model_uuid)
        return fetch.staged

    async def files(self, row: TransferRow) -> list[SourceFile]:
        """Return the files of the model: those of its source, with the projector and the adapters that the caller gave instead.

        Raises SourceError.
        """
        instead = {FileRole.PROJECTOR: bool(row.projector), FileRole.ADAPTER: bool(row.adapters)}
        files = [file for file in await self._source.files(row.source) if not instead.get(file.role)]
        if row.projector not in ("", NO_FILE):
            files.append(SourceFile(row.projector, FileRole.PROJECTOR))
        files += [SourceFile(address, FileRole.ADAPTER, name) for name, address in row.adapters if address != NO_FILE]
        return sorted(files, key=lambda file: list(FileRole).index(file.role))

    async def _survey(self, row: TransferRow, files: Sequence[SourceFile]) -> int:
        """Check the headers of all files, reserve room for them, and return the sum of their sizes; 0 if one is unknown."""
        sizes: list[int | None] = []
        present = 0
        model, complete = ModelCheck([file.role for file in files]), True
        for file in files:
            async with self._source.open(file.address) as found:
                self._note_opened(row, file, found)
                stored = await self._present_object(file, found)
                if stored is not None:
                    present += stored.size
                    header: Header | None = await staged_header(stored)
                else:
                    header = await self._header(found)
                found.end_stream()
                sizes.append(found.size)
            self.holds.moved(row.model_uuid)
            # A header that is too large to be read early is checked when all bytes are staged.
            complete = complete and header is not None
            if complete and header is not None:
                model.add(header)
        if complete:
            model.metadata()
        known = sum(size or 0 for size in sizes)
        await self._room.reserve(row, known - present)
        return 0 if None in sizes else known

    async def _header(self, found: SourceObject) -> Header | None:
        """Read the header of an open file, None if it is too large, and nothing more."""
        async with aclosing(continued(self._bandwidth.limited(found), self._clock)) as chunks:
            return await read_header(chunks, found.size)

    async def _stage(self, fetch: Fetch, number: int, found: SourceObject) -> None:
        """Stage one open file and add it to the staged files of the fetch."""
        # The time in which the store may stall counts from here, not from the end of the file before.
        fetch.received(0)
        expected = fetch.expected_sha256(number) or found.sha256
        staged: StagedObject | None = await self._present_object(fetch.files[number - 1], found)
        if staged is not None:
            found.end_stream()
            fetch.present(staged.size)
        else:
            asked = replace(self._bandwidth.limited(found), sha256=expected)
            room = FileRoom(self._room, fetch.row, found.size, reserved=len(fetch.files) > 1)
            staged = await self._staging.stage(
                fetch.row, number, asked, fetch.check(number), room.take, fetch.received, fetch.present
            )
        fetch.add(number, found, staged)
        check_digest(staged.sha256, expected)

    def _note_opened(self, row: TransferRow, file: SourceFile, found: SourceObject) -> None:
        self._answered.add(row.model_uuid)
        if file.role is FileRole.WEIGHTS:
            self.holds.opened(row.model_uuid, file.address, found)

    async def _present_object(self, file: SourceFile, found: SourceObject) -> PresentObject | None:
        """Return the object of the store with the bytes of an open file, also after an outage of the database."""
        return await until_written(
            partial(self._present.of_source, file.address, found), "look for the bytes of a file"
        )


async def discard(files: Iterable[StagedFile]) -> None:
    """Remove staged bytes. If that fails, the store's next sweep does it; the result of the transfer stays the same."""
    for file in files:
        try:
            await file.staged.discard()
        except StoreError as error:
            report_failure("discard staged bytes", error)
