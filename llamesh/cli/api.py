"""`llamesh api`: any REST call of the mesh, with your token."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import Annotated

from cyclopts import Parameter

from llamesh.cli.connection import meant
from llamesh.cli.failure import visible
from llamesh.cli.inference import inference_address
from llamesh.cli.printing import put, say
from llamesh.locations import expanded


def api(
    method: str,
    path: str,
    /,
    *,
    data: Annotated[str, Parameter(name=("--data", "-d"), allow_leading_hyphen=True)] = "",
    inference: Annotated[bool, Parameter(negative="")] = False,
    include: Annotated[bool, Parameter(name=("--include", "-i"), negative="")] = False,
) -> None:
    """Make a REST call and print the answer's body.

    Parameters
    ----------
    method
        GET, POST, PATCH or DELETE.
    path
        For instance /status.
    data
        The body: JSON, @FILE, or - for standard input.
    inference
        Ask the inference address (8080), not the management one.
    include
        Print the status and the headers of the answer before its body, also if it is a refusal.
    """
    from llamesh.cli import web

    profile = meant()
    base = inference_address(profile) if inference else profile.url
    with web.answer(base, method.upper(), f"/{path.lstrip('/')}", profile.token, _body(data)) as response:
        if include:
            head = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in response.getheaders())]
            say("\n".join([*head, ""]))
        if response.status >= 400:
            raise web.refusal(response)
        _show(iter(lambda: response.read1(65536), b""))
    if sys.stdout.isatty():
        say("")


def _show(chunks: Iterable[bytes]) -> None:
    """Write a body while it arrives: unchanged on a pipe, without control characters in a terminal."""
    if not sys.stdout.isatty():
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        put(visible(decoder.decode(chunk)))
    put(visible(decoder.decode(b"", final=True)))


def _body(data: str) -> bytes | None:
    if data == "-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        return expanded(data[1:], "--data").read_bytes()
    return data.encode() if data else None
