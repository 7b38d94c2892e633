"""Forward-only reader for an untrusted GGUF header: checks every length before it uses it.

It stores one window of the file, never the whole header, and rejects a header that would make it read or loop without bound: a header above
256 MiB, a string above 16 MiB, more than 2 million strings. The largest real headers (a vocabulary of 262,144 words and half a million
merges) need half of that or less.

Numbers in arrays cost nothing, because `skip` seeks past them. Each string costs one step of a loop, each key, tensor and scalar a few
calls. All bounds together keep the check below some ten million steps and a few MiB.
"""

import struct
from typing import BinaryIO

MAX_HEADER = 256 << 20
MAX_STRING = 16 << 20
MAX_STRINGS = 2_000_000
_WINDOW = 1 << 20
_MAX_SIZE = (1 << 63) - 1
"""Maximum size of a file in bytes."""
_U64 = struct.Struct("<Q")


class GgufError(Exception):
    """A file is not a model that may be served.

    `reason` is the problem, `offset` the byte where it was found, `what` the part of the file that was read.
    """

    def __init__(self, reason: str, *, offset: int, what: str) -> None:
        super().__init__(f"{what} at byte {offset}: {reason}")
        self.reason = reason
        self.offset = offset
        self.what = what


class Reader:
    """Reads little-endian values in order. `what` names the current part of the file in errors. `size` is None if it is unknown."""

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self.size_known = size is not None
        size = _MAX_SIZE if size is None else size
        self._file = file
        self._end = min(size, MAX_HEADER)
        self._capped = size > MAX_HEADER
        self._window = b""
        self._base = 0
        self._at = 0
        self._strings = 0
        self.size = size
        """Size of the file in bytes; the largest possible one if it is unknown."""
        self.what = "header"
        file.seek(0)

    @property
    def offset(self) -> int:
        """Offset of the next byte in the file."""
        return self._base + self._at

    def error(self, reason: str, *, offset: int | None = None) -> GgufError:
        """Return an error about the current part, at `offset` or at the next byte."""
        return GgufError(reason, offset=self.offset if offset is None else offset, what=self.what)

    def require(self, length: int) -> None:
        """Raise GgufError unless `length` more bytes are inside the file and inside the header's limit."""
        left = self._end - self.offset
        if length <= left:
            return
        if self._capped:
            raise self.error(f"{length} more bytes make the header larger than {MAX_HEADER} bytes")
        raise self.error(f"the file ends here: {length} bytes are missing of which {max(left, 0)} are there")

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        self.require(length)
        if self._at + length > len(self._window):
            self._fill(length)
        data = self._window[self._at : self._at + length]
        self._at += length
        return data

    def skip(self, length: int) -> None:
        """Skip `length` bytes without reading them."""
        self.require(length)
        if self._at + length <= len(self._window):
            self._at += length
            return
        self._base = self.offset + length
        self._window, self._at = b"", 0
        self._file.seek(self._base)

    def peek(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at an earlier `offset`. The position of the reader does not change."""
        self._file.seek(offset)
        data = self._file.read(length)
        self._file.seek(self._base + len(self._window))
        if len(data) < length:
            raise self.error("the file became shorter while it was read", offset=offset)
        return data

    def u32(self) -> int:
        """Read an unsigned 32-bit number."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Read an unsigned 64-bit number."""
        return int.from_bytes(self.take(8), "little")

    def number(self, form: struct.Struct) -> int | float:
        """Read one number of the given format."""
        value: int | float = form.unpack(self.take(form.size))[0]
        return value

    def string(self, limit: int = MAX_STRING) -> bytes:
        """Read a string: a length and as many bytes, at most `limit`."""
        return self.take(self._string_length(limit))

    def name(self, limit: int) -> str:
        """Read the name of a key or tensor: printable ASCII without spaces, at most `limit` bytes."""
        start = self.offset
        raw = self.string(limit)
        name = raw.decode("ascii", "replace")
        if not raw or not name.isascii() or not name.isprintable() or " " in name:
            raise self.error(f"a name of other than printable ASCII characters: {raw[:40]!r}", offset=start)
        return name

    def text(self, limit: int = MAX_STRING) -> str:
        """Read a string that must be UTF-8."""
        start = self.offset
        try:
            return self.string(limit).decode()
        except UnicodeDecodeError as error:
            raise self.error("text that is not UTF-8", offset=start) from error

    def label(self, limit: int) -> str:
        """Read a string for people. Bytes that are not UTF-8 are replaced, because some files have names in an older encoding."""
        return self.string(limit).decode(errors="replace")

    def beginning(self, limit: int) -> str:
        """Read the first `limit` bytes of a string for people and skip the rest. Bytes that are not UTF-8 are left out."""
        length = self._string_length(MAX_STRING)
        raw = self.take(min(length, limit))
        self.skip(length - len(raw))
        return raw.decode(errors="ignore")

    def skip_string(self) -> int:
        """Skip a string. Returns its length in bytes."""
        length = self._string_length(MAX_STRING)
        self.skip(length)
        return length

    def _string_length(self, limit: int) -> int:
        self._count_strings(1)
        length = self.u64()
        if length > limit:
            raise self.error(f"a string of {length} bytes, at most {limit} are allowed", offset=self.offset - 8)
        self.require(length)
        return length

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings, inside the window as far as possible, because vocabularies are long."""
        self._count_strings(count)
        self.require(8 * count)
        left = count
        while left:
            window, at, end = self._window, self._at, len(self._window)
            while left and at + 8 <= end:
                after = at + 8 + _U64.unpack_from(window, at)[0]
                if after > end:
                    break
                at = after
                left -= 1
            self._at = at
            if left:
                self._strings -= 1
                self.skip_string()
                left -= 1

    def _count_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise self.error(f"more than {MAX_STRINGS} strings")

    def _fill(self, length: int) -> None:
        """Move the window to the next byte and read at least `length` bytes into it."""
        rest = self._window[self._at :]
        self._base, self._at = self.offset, 0
        wanted = min(max(length, _WINDOW), self._end - self._base)
        parts, have = [rest], len(rest)
        while have < wanted:
            data = self._file.read(wanted - have)
            if not data:
                break
            parts.append(data)
            have += len(data)
        self._window = b"".join(parts)
        if have < length:
            raise self.error("the file became shorter while it was read")
