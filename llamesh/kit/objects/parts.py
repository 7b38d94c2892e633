"""Objects that are written in parts, in any order and at the same time, and that survive their writer.

A caller creates such an object under a name that it has recorded, writes its parts and finishes it. If the process is killed, the next one
opens the object by the same name and writes only the parts that it lacks. Invariant: nothing removes such an object but `remove`; so the
caller keeps a record of each name, and removes the names without a record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamesh.kit.objects.store import StagedObject

SUFFIX = ".parts"
"""End of the names of these objects among the staged ones."""


@dataclass(frozen=True, slots=True)
class PartLayout:
    """The division of `size` bytes into parts of `part_size` bytes; the last part may be shorter. Parts have the numbers 1 to `count`."""

    size: int
    part_size: int

    @property
    def count(self) -> int:
        """Number of parts."""
        return -(-self.size // self.part_size)

    def span(self, number: int) -> tuple[int, int]:
        """Return the offset and the length of a part in bytes."""
        offset = (number - 1) * self.part_size
        return offset, min(self.part_size, self.size - offset)

    def missing(self, done: Mapping[int, str]) -> Iterator[int]:
        """Yield the numbers of the parts that are not done, in order."""
        return (number for number in range(1, self.count + 1) if number not in done)

    def bytes_of(self, done: Mapping[int, str]) -> int:
        """Return the number of bytes of the parts that are done."""
        return sum(self.span(number)[1] for number in done)


@dataclass(frozen=True, slots=True)
class ObjectOrigin:
    """An object of an S3 server that parts may be copied from inside the server. `access_key` may read it; `etag` has its quotes."""

    endpoint: str
    secure: bool
    access_key: str
    bucket: str
    key: str
    etag: str


class PartedObject(Protocol):
    """An object that this process writes. Call `close` at the end, also after `finish`."""

    layout: PartLayout
    key: str
    """The key under which the object is visible as soon as it is finished; "" if it is staged then."""
    done: dict[int, str]
    """The parts that the store has, with the store's tag of each ("" if it has none)."""

    async def write(self, number: int, chunks: AsyncIterator[bytes]) -> str:
        """Write a part durably and return its tag. Several parts may be written at the same time."""

    async def copy(self, number: int, origin: ObjectOrigin) -> str | None:
        """Copy a part durably from the same bytes of an object and return its tag; None if the store cannot: write it then.

        Raises ObjectChangedError if the object has another ETag.
        """

    async def written(self, number: int) -> None:
        """Hash a written part in its turn. The caller begins its next part after that, which bounds the memory."""

    def digest_on_the_way(self) -> str:
        """Return the SHA-256 of all bytes in hex; "" if it is not known before `finish`."""

    async def finish(self) -> StagedObject:
        """Return the complete object. Its `discard` only closes it: a process that comes later may still need it."""

    async def close(self) -> None:
        """Close the object. Its bytes stay. Idempotent."""


class PartedObjects(Protocol):
    """The objects of one store that are written in parts.

    The name of an object is a token, or in a store that writes `in_place` the key under which it will be published. Such an object is not
    copied when it is published.
    """

    in_place: bool
    """Whether a name may be a key."""

    def layout(self, size: int, part_size: int) -> PartLayout:
        """Return the layout for an object: parts of about `part_size` bytes, within the limits of the store."""

    async def create(self, name: str, layout: PartLayout) -> str:
        """Create an object without any part. Return the store's id of it, which the other calls need ("" if it has none)."""

    async def open(self, name: str, upload: str, layout: PartLayout, recorded: Mapping[int, str]) -> PartedObject:
        """Open an object for writing. `recorded` are the parts that its writers have recorded, with their tags.

        Raises ObjectNotFoundError if the store has no such object, and StoreShortError if it has no room for the missing bytes.
        """

    async def occupied(self, name: str, layout: PartLayout, recorded: Mapping[int, str]) -> int:
        """Return for how many bytes of an object the store needs no more room: those that it has, recorded or not."""

    async def remove(self, name: str, upload: str) -> None:
        """Remove an object in any state. Idempotent. An object with a key for its name stays if it is complete: `delete` removes it."""

    async def found(self) -> Sequence[tuple[str, str]]:
        """Return name and id of each object that the store has and that may have been abandoned."""
