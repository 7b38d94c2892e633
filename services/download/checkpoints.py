"""Checkpoints for the Quant service: finds their files, and reads them by the rules of all sources.

A checkpoint is a model in the format of Hugging Face, in a repository of the Hub or in a folder in which models may be imported. It never
becomes a model of the catalogue: the Quant service converts it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from llamesh.hub_addresses import HubAddress, read_hub_address
from llamesh.model_addresses import canonical
from llamesh.v1.checkpoint_pb2 import Checkpoint, CheckpointFile
from services.download.bandwidth import Bandwidth
from services.download.continuation import continued, continued_range
from services.download.sources import (
    FileSource,
    HubSource,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
)
from services.download.sources.addresses import refuse_user
from services.download.sources.checkpoint_files import checkpoint_files, is_of_checkpoint, is_pickle

_COMMIT = re.compile(r"[0-9a-f]{40}")
FORMS = "hf:OWNER/REPO, hf:OWNER/REPO@REVISION, or a folder: file:///FOLDER"


class Checkpoints:
    """Reads checkpoints from the Hub and from folders. `clock` is monotonic, in seconds."""

    def __init__(self, hub: HubSource, files: FileSource, bandwidth: Bandwidth, clock: Callable[[], float]) -> None:
        self._hub = hub
        self._files = files
        self._bandwidth = bandwidth
        self._clock = clock

    async def find(self, source: str) -> Checkpoint:
        """Return the files of a checkpoint at its present revision. Raises SourceError."""
        address = self._hub_address(source)
        return await (self._in_folder(source) if address is None else self._in_repository(address))

    async def read(self, source: str, name: str, offset: int, version: str) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file from an offset. Raises SourceError; SourceChangedError if the file has another version."""
        async with self._opened(source, name) as opened:
            if version and version != opened.etag:
                raise SourceChangedError(
                    f"{name} was changed since the job was submitted", opened=version, found=opened.etag
                )
            async with aclosing(self._from(self._bandwidth.limited(opened), offset)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _from(self, found: SourceObject, offset: int) -> AsyncGenerator[bytes, None]:
        if found.read is not None and found.size is not None and offset:
            found.end_stream()
            async for chunk in continued_range(found, self._clock, offset, found.size - offset):
                yield chunk
            return
        async for chunk in continued(found, self._clock):
            if rest := chunk[offset:]:
                yield rest
            offset = max(0, offset - len(chunk))

    async def _in_repository(self, address: HubAddress) -> Checkpoint:
        listing = await self._hub.listing(address)
        if _COMMIT.fullmatch(address.revision) and address.revision != listing.commit:
            words = f"{self._hub.host} lists another commit of {address.repository} than the one that was asked for"
            raise SourceChangedError(words, opened=address.revision, found=listing.commit)
        sizes = {name: file.size for name, file in listing.checkpoint.items() if file.size is not None}
        if len(sizes) != len(listing.checkpoint):
            raise SourceError(f"{self._hub.host} does not list the sizes of the files of {address.repository}")
        names = checkpoint_files(sizes, address.repository, has_pickles=listing.has_pickles)
        pinned = str(replace(address, revision=listing.commit))
        files = [listing.checkpoint[name] for name in names]
        return Checkpoint(
            source=pinned,
            shown_source=pinned,
            name=address.repo,
            revision=listing.commit,
            files=[
                CheckpointFile(name=file.path, size_bytes=file.size or 0, sha256=file.sha256, git_blob=file.git_blob)
                for file in files
            ],
        )

    async def _in_folder(self, source: str) -> Checkpoint:
        checked = self._files.check(source)
        present = await asyncio.to_thread(self._files.names, source)
        files = {}
        for name in filter(is_of_checkpoint, present):
            async with self._opened(source, name) as found:
                files[name] = CheckpointFile(name=name, size_bytes=found.size or 0, version=found.etag)
        sizes = {name: file.size_bytes for name, file in files.items()}
        names = checkpoint_files(sizes, checked.name, has_pickles=any(map(is_pickle, present)))
        return Checkpoint(
            source=source, shown_source=checked.shown, name=checked.name, files=[files[name] for name in names]
        )

    def _opened(self, source: str, name: str) -> AbstractAsyncContextManager[SourceObject]:
        if not is_of_checkpoint(name):
            raise SourceRefusedError(f"{name[:80]} is no file that a conversion reads", rule="file name")
        address = self._hub_address(source)
        if address is None:
            return self._files.open(f"{source.rstrip('/')}/{name}")
        return self._hub.open_of_checkpoint(address, name)

    def _hub_address(self, source: str) -> HubAddress | None:
        """Return the address of a repository; None for a folder. Raises SourceRefusedError."""
        refuse_user(source)
        try:
            address = canonical(source)
            if address.startswith("hf:"):
                found = read_hub_address(address)
                if found.choice or found.path:
                    raise SourceRefusedError(
                        f"a checkpoint is a whole repository: {replace(found, choice='', path='')}", rule="form"
                    )
                return found
        except ValueError as error:
            raise SourceRefusedError(str(error), rule="form") from error
        if not address.startswith(("file:", "/")):
            raise SourceRefusedError(f"not the address of a checkpoint: give {FORMS}", rule="form")
        return None
