"""The upstream of all inference targets: `python -m benchmarks.stub SOCKET PORT` answers like llama.cpp, without a model.

A plain answer carries usage; a stream has 64 frames, one each millisecond, and then closes the connection, as llama.cpp does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

FRAMES = 64
PERIOD = 0.001
PLAIN = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795472766,
        "model": "m1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    },
    separators=(",", ":"),
).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: %d\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _written(value: dict[str, Any]) -> str:
    """Return JSON without blanks, as llama.cpp writes it."""
    return json.dumps(value, separators=(",", ":"))


def frame(text: str) -> bytes:
    """Return one event as one chunk."""
    data = f"data: {text}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            if b'"stream": true' in body or b'"stream":true' in body:
                writer.write(STREAM)
                for number in range(FRAMES):
                    writer.write(frame(_written({"choices": [{"index": 0, "delta": {"content": f"w{number}"}}]})))
                    await asyncio.sleep(PERIOD)
                timings = {"prompt_n": 5, "cache_n": 0, "predicted_n": FRAMES}
                writer.write(frame(_written({"choices": [], "timings": timings})) + frame("[DONE]") + b"0\r\n\r\n")
                await writer.drain()
                return
            writer.write(HEAD % len(PLAIN) + PLAIN)
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


async def main() -> None:
    """Listen on both until terminated."""
    await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2]))
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
