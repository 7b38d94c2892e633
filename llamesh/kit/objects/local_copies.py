"""Local copies of remote objects, for engines, which open files.

Invariant: a copy appears under its name only after its SHA-256 was compared with the one in the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

from llamesh.kit.logs import log
from llamesh.kit.objects.staging import StagingFile, store_errors, sweep
from llamesh.kit.objects.store import ObjectDamagedError, checked_key, digest_of

Read: TypeAlias = Callable[[str], AsyncIterator[bytes]]
"""Reads a remote object."""


class LocalCopies:
    """Copies below `directory`. `read` reads the remote object with a key."""

    def __init__(self, directory: Path, read: Read) -> None:
        self._directory = directory.absolute()
        self._staging = self._directory / "staging"
        self._read = read
        self._fetches: dict[str, asyncio.Task[Path]] = {}

    def prepare(self) -> None:
        """Create the directory and remove what dead writers left behind. Blocks."""
        with store_errors("cannot use the cache of the object store"):
            sweep(self._staging)

    async def path(self, key: str, size: int | None) -> Path:
        """Return the local copy, fetched now if it is missing or has another length than `size`. Concurrent callers share one fetch."""
        target = self._directory / checked_key(key)
        present = await asyncio.to_thread(_size_of, target)
        if present is not None and size in (None, present):
            return target
        if present is not None:
            log.warning("a local copy has the wrong length and is fetched again", path=str(target), bytes=present)
            target.unlink(missing_ok=True)
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(key, target))
            self._fetches[key] = fetch
            fetch.add_done_callback(lambda _: self._fetches.pop(key, None))
        return await asyncio.shield(fetch)

    def remove(self, key: str) -> None:
        """Remove the local copy, if there is one."""
        (self._directory / checked_key(key)).unlink(missing_ok=True)

    async def close(self) -> None:
        """Cancel all fetches."""
        for fetch in list(self._fetches.values()):
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)

    async def _fetch(self, key: str, target: Path) -> Path:
        with store_errors(f"cannot write {key} to the cache"):
            file = StagingFile(self._staging)
            try:
                async for block in self._read(key):
                    await asyncio.to_thread(file.write, block)
                if file.sha256 != digest_of(key):
                    raise ObjectDamagedError(f"{key} is damaged: its bytes have SHA-256 {file.sha256}")
                await asyncio.to_thread(file.publish, target)
            finally:
                await asyncio.to_thread(file.discard)
        return target


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
