"""Log files of engines: one file of bounded length for each replica, continued across restarts.

The engine itself has the file open for appending, so nothing is lost while no controller runs. A file that is too long is trimmed in place
to its newer half.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

MAX_BYTES = 4 << 20
"""Maximum length of a log file, in bytes."""
_FOLLOW_SECONDS = 0.25
_BLOCK = 64 << 10
_MAX_READ = 1 << 20
"""Maximum number of bytes that are read at once, or kept as one line."""


class EngineLogs:
    """Log files in one directory."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def open(self, server_uuid: str, replica: int) -> int:
        """Return a descriptor for appending. Close it once the engine has inherited it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self._path(server_uuid, replica), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def trim(self) -> None:
        """Trim the files that have grown too long. If one cannot be trimmed, trims the others and then raises OSError."""
        failure: OSError | None = None
        for path in self._directory.glob("*.log"):
            try:
                if path.stat().st_size > self._max_bytes:
                    self._shorten(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure

    def drop(self, server_uuid: str) -> None:
        """Remove a server's logs."""
        for path in self._directory.glob(f"{server_uuid}-*.log"):
            path.unlink(missing_ok=True)

    async def read(
        self, server_uuid: str, replica: int, tail: int, *, follow: bool
    ) -> AsyncGenerator[Sequence[str], None]:
        """Yield batches of lines: the last `tail` lines and, with `follow`, new lines as they come."""
        path = self._path(server_uuid, replica)
        data, position = _tail(path, tail)
        lines = data.split(b"\n")
        rest = b"" if not follow else lines[-1]
        complete = lines[:-1] if follow or not lines[-1] else lines
        if complete:
            yield _decoded(complete[-tail:])
        while follow:
            await asyncio.sleep(_FOLLOW_SECONDS)
            fresh, position = _since(path, position)
            *whole, rest = (rest + fresh).split(b"\n")
            if len(rest) > _MAX_READ:
                whole, rest = [*whole, rest], b""
            if whole:
                yield _decoded(whole)

    def _shorten(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(-self._max_bytes // 2, os.SEEK_END)
            kept = file.read().partition(b"\n")[2]
            # Writers append, so new lines are written at the new end. A line that is written between read and truncate may be lost.
            file.truncate(0)
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            os.write(file.fileno(), kept)

    def _path(self, server_uuid: str, replica: int) -> Path:
        return self._directory / f"{server_uuid}-{replica}.log"


def _tail(path: Path, lines: int) -> tuple[bytes, int]:
    """Return the end of a file with at least this number of lines, and the file's length."""
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                step = min(_BLOCK, position)
                position -= step
                file.seek(position)
                data = file.read(step) + data
            return data, end
    except FileNotFoundError:
        return b"", 0


def _since(path: Path, position: int) -> tuple[bytes, int]:
    """Return the text after a position, and the new position. In a trimmed (shorter) file, continue at its end."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if end < position:
                return b"", end
            file.seek(position)
            data = file.read(_MAX_READ)
            return data, position + len(data)
    except FileNotFoundError:
        return b"", 0


def _decoded(lines: Sequence[bytes]) -> list[str]:
    return [line.decode(errors="replace").rstrip("\r") for line in lines]
