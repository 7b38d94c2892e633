"""`llamesh api`: any REST call of the mesh, with your token."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llamesh.cli.connection import meant
from llamesh.cli.failure import CommandError, Exit, visible
from llamesh.cli.inference import inference_address
from llamesh.cli.printing import put, say
from llamesh.locations import expanded

if TYPE_CHECKING:
    from http.client import HTTPResponse


def api(
    method: str = "",
    path: str = "",
    /,
    *,
    data: Annotated[str, Parameter(name=("--data", "-d"), allow_leading_hyphen=True)] = "",
    inference: Annotated[bool, Parameter(negative="")] = False,
    include: Annotated[bool, Parameter(name=("--include", "-i"), negative="")] = False,
) -> None:
    """Make a REST call and print the answer's body. Without arguments: list the calls.

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

    if not method:
        _list_calls()
        return
    if not path:
        raise CommandError("a path is needed", hint="`llamesh api` lists the calls", code=Exit.USAGE)
    method, path = method.upper(), f"/{path.lstrip('/')}"
    profile = meant()
    base = inference_address(profile) if inference else profile.url
    with web.answer(base, method, path, profile.token, _body(data)) as response:
        if include:
            head = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in response.getheaders())]
            say("\n".join([*head, ""]))
        if response.status >= 400:
            raise _refusal(response, "" if inference else _hint(response, method, path))
        _show(iter(lambda: response.read1(65536), b""))
    if sys.stdout.isatty():
        say("")


def _list_calls() -> None:
    from llamesh.cli.rest_calls import rest_calls

    for call in rest_calls():
        verb, path = str(call).split(" ")
        say(f"{verb:6}  {path:40}  {call.method}")


def _hint(response: HTTPResponse, method: str, path: str) -> str:
    """Return the call that was probably meant, if the mesh has no such call."""
    if response.status not in {404, 405, 501}:
        return ""
    from llamesh.cli.rest_calls import hint_for

    return hint_for(method, path)


def _refusal(response: HTTPResponse, hint: str) -> CommandError:
    from llamesh.cli import web

    refused = web.refusal(response)
    return CommandError(refused.cause, parts=refused.parts, hint=hint or refused.hint, code=refused.code)


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
