"""A plain HTTP/1.1 client: a request is written byte by byte, so that nothing is put in order before Envoy sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """A response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of OpenAI's shape."""
        body = self.json()
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        return dict(body["error"])


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """First line and headers, names in lower case."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in lines if line)
    return first, {name.lower(): value for name, value in headers.items()}


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The body that these headers announce."""
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    if headers.get("transfer-encoding") != "chunked":
        return b""
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def written(value: Any) -> str:
    """JSON without blanks, as llama.cpp writes it."""
    return json.dumps(value, separators=(",", ":"))


class Connection:
    """One keep-alive connection that sends exactly what it is told: no path is tidied, no header added but host and length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        version: str = "1.1",
    ) -> Answer:
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            if not any(name.lower() == "content-type" for name, _ in given):
                given.append(("content-type", "application/json"))
        if not any(name.lower() == "host" for name, _ in given):
            given.append(("host", "localhost"))
        if body is not None:
            given.append(("content-length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in given)
        self._writer.write(f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode("latin-1") + (body or b""))
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        first, received = await read_head(self._reader)
        status = int(first.split()[1])
        empty = method == "HEAD" or status in (204, 304)
        return Answer(status, received, b"" if empty else await read_body(self._reader, received))

    def close(self) -> None:
        self._writer.close()
