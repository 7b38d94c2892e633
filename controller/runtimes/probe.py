"""What an engine says of itself over HTTP on its Unix socket: is it ready, is it busy.

Invariant: only small answers of llama.cpp's own are read here; no inference ever passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from controller.runtimes import Load

_SECONDS = 2.0
_MOST_BYTES = 1 << 20
_BUSY = re.compile(rb"^llamacpp:requests_(?:processing|deferred) (\S+)", re.MULTILINE)
_WORK = re.compile(rb"^llamacpp:(?:prompt_tokens_total|tokens_predicted_total|n_decode_total) (\S+)", re.MULTILINE)


async def is_ready(socket: str) -> bool:
    """Whether the model is loaded and requests are answered."""
    with contextlib.suppress(OSError, TimeoutError):
        status, _ = await _get(socket, "/health")
        return status == 200
    return False


async def load(socket: str) -> Load | None:
    """How busy the engine is; None where it does not say in time."""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        status, body = await _get(socket, "/metrics")
        if status == 200:
            busy = any(float(count) > 0 for count in _BUSY.findall(body))
            return Load(busy, sum(float(count) for count in _WORK.findall(body)))
    return None


async def _get(socket: str, path: str) -> tuple[int, bytes]:
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read(_MOST_BYTES)
            while not reader.at_eof() and len(answer) < _MOST_BYTES:
                answer += await reader.read(_MOST_BYTES)
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None:
        raise ConnectionError(f"no HTTP answer from {socket}")
    return int(status[1]), body
