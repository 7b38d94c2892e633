"""HTTP GET on an engine, for liveness probes and counters: the controller and the engine's supervising process use it.

Invariant: no inference passes through this module, and at most MAX_BYTES of an answer are read. The caller sets the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

MAX_BYTES = 1 << 20


async def get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, api_key: str = ""
) -> tuple[int, bytes]:
    """Send a GET over a new connection and close it; return status and body. ConnectionResetError if the answer is not HTTP."""
    try:
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: engine\r\n{key}Connection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < MAX_BYTES and (part := await reader.read(MAX_BYTES)):
            answer += part
    finally:
        writer.close()
        # Wait until the kernel has closed it, so that it is not counted as a connection of a client.
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None:
        raise ConnectionResetError("the answer is not HTTP")
    return int(status[1]), body
