"""Stages the bytes of an opened source in the object store: in parts if the source has ranges, else as one stream.

In parts: the header is read first, so a file that is refused costs a small read. Then `parallel` tasks take the missing parts in order.
Each reads its part, writes it, records it in the journal (`partial_objects`) and waits until it is hashed. If the process is killed, at
most `parallel` parts that were read are not recorded and are read again. Under a limit of bandwidth all parts on their way advance at the
same rate, so no more are read at once than the limit fills in a second. A file with larger parts than the settings ask for has fewer of
them on their way. If source and store are one S3 server, it copies the parts, and the object is read once from the store to hash it
(docs/adr/0042).

Invariant: a part is recorded only when the store has it durably. A part is read from the object that was opened (`If-Match`), and the
journal belongs to an object with the same ETag, size and revision, so parts of two objects are never mixed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

from llamesh.kit.completion import together
from llamesh.kit.objects import ObjectChangedError, ObjectStore, PartedObject, StagedObject
from llamesh.kit.outages import until_written
from services.download.continuation import continued, continued_range
from services.download.early_check import Check, Take, check_header, checked_chunks
from services.download.partial_objects import PartialObjects
from services.download.sources import SourceChangedError, SourceObject
from services.download.tables import TransferRow
from services.download.verification import check_digest

Count = Callable[[int], None]
"""Called with a number of bytes."""


MIN_MEMORY = 64 << 20
"""Minimum number of bytes of parts on their way, whatever the settings say: parts in S3 have at least 5 MiB."""


def parts_at_once(parallel: int, part_size: int, bytes_per_second: int, memory: int) -> int:
    """Return how many parts are read at the same time: `parallel`, but no more than fit into `memory` bytes, and at least one.

    Under a limit of bandwidth, those that it fills in a second.
    """
    most = max(1, min(parallel, memory // part_size))
    return min(most, max(1, bytes_per_second // part_size)) if bytes_per_second else most


class Staging:
    """Stages sources. An object of at least two parts of `part_size` bytes is staged in parts. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        store: ObjectStore,
        objects: PartialObjects | None,
        part_size: int,
        parallel: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._objects = objects
        self._part_size = part_size
        self._parallel = parallel
        self._memory = max(MIN_MEMORY, parallel * part_size)
        """Bytes of parts on their way. In S3 a part is in memory until it is hashed, and a large file, which the source claims, has larger
        parts than the settings ask for."""
        self._clock = clock

    async def stage(
        self,
        row: TransferRow,
        number: int,
        found: SourceObject,
        check: Check,
        take: Take,
        received: Count,
        present: Count,
    ) -> StagedObject:
        """Stage all bytes of file `number` of a transfer. `check` gets its header first, then `take` reserves room for its bytes.

        `received` gets the length of each chunk that arrives, `present` that of all parts of an earlier run.
        """
        if self._objects is None or found.read is None or (found.size or 0) <= self._part_size:
            chunks = checked_chunks(continued(found, self._clock), found.size, received, check, take)
            return await self._store.stage(chunks, expected_size=found.size)
        found.end_stream()
        opened = partial(self._objects.open, row, number, found, self._part_size)
        name, parted = await until_written(opened, "open an object in parts")
        try:
            if parted.done:
                present(parted.layout.bytes_of(parted.done))
            else:
                await check_header(partial(continued_range, found, self._clock), parted.layout.size, check)
            await take(0)
            await self._write_parts(found, parted, partial(self._objects.record, name), received)
            check_digest(parted.digest_on_the_way(), found.sha256)
            if parted.key:
                await until_written(partial(self._objects.hold, parted.key), "hold an object")
            return await parted.finish()
        except BaseException:
            await parted.close()
            raise

    async def _write_parts(
        self, found: SourceObject, parted: PartedObject, record: Callable[[int, str], Awaitable[None]], received: Count
    ) -> None:
        missing = parted.layout.missing(dict(parted.done))

        async def work() -> None:
            for number in missing:
                tag = await _copied(found, parted, number, received)
                if tag is None:
                    chunks = _counted(continued_range(found, self._clock, *parted.layout.span(number)), received)
                    tag = await parted.write(number, chunks)
                await until_written(partial(record, number, tag), "record a part")
                await parted.written(number)

        part_size = parted.layout.part_size
        await together(work, parts_at_once(self._parallel, part_size, found.bytes_per_second, self._memory))


async def _copied(found: SourceObject, parted: PartedObject, number: int, received: Count) -> str | None:
    """Copy a part inside the server that has both objects, and return its tag; None if it has to be read. Raises SourceChangedError."""
    if found.origin is None:
        return None
    try:
        tag = await parted.copy(number, found.origin)
    except ObjectChangedError as error:
        raise SourceChangedError(str(error), opened=found.etag, found="") from error
    if tag is not None:
        received(parted.layout.span(number)[1])
    return tag


async def _counted(chunks: AsyncGenerator[bytes, None], received: Count) -> AsyncIterator[bytes]:
    # `received` raises if another transfer has got the room.
    async with aclosing(chunks):
        async for chunk in chunks:
            received(len(chunk))
            yield chunk
