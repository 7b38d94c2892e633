"""HTTP client from the standard library, for REST calls; it loads much faster than an HTTP package."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from llamesh.cli.connection import (
    NEEDS_TLS,
    UNVERIFIED,
    WITHOUT_TLS,
    check_token,
    clear_text,
    encrypted,
    not_an_address,
    start_hint,
    untrusted,
)
from llamesh.cli.failure import CommandError, Exit, exit_of_http
from llamesh.client.trust import UntrustedError, ssl_context


@contextmanager
def answer(
    base: str, method: str, path: str, token: str, body: bytes | None = None, timeout: float | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Send one request and return the answer. CommandError if nothing answers."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise not_an_address(base) from None
    if parts.scheme not in {"http", "https"} or not host:
        raise not_an_address(base)
    check_token(token)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=_context(base))
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    headers: Mapping[str, str] = {
        **({"authorization": f"Bearer {token}"} if token else {}),
        **({"content-type": "application/json"} if body is not None else {}),
    }
    response = None
    try:
        connection.request(method, f"{parts.path.rstrip('/')}{path}", body, dict(headers))
        response = connection.getresponse()
        if _needs_tls(response) and (plain := encrypted(base)):
            raise plain
        yield response
    except (OSError, http.client.HTTPException) as error:
        if response and isinstance(error, BrokenPipeError):
            raise  # Reading breaks no pipe: standard output is broken, whose reader (`head`) has ended.
        if WITHOUT_TLS in str(error):
            raise clear_text(base) from error
        if UNVERIFIED in str(error):
            raise untrusted(base, str(error)) from error
        raise CommandError(
            f"{base} does not answer",
            parts=[str(error)],
            hint=start_hint(base),
            code=Exit.UNAVAILABLE,
        ) from error
    finally:
        connection.close()


def _needs_tls(response: http.client.HTTPResponse) -> bool:
    """Whether an answer to plain HTTP, which stays unread, says to use https: a redirect of GET and HEAD, a refusal of other requests."""
    if response.status == http.client.PERMANENT_REDIRECT:
        return response.getheader("location", "").startswith("https://")
    # A look at a body of length 0 would wait for a further answer.
    refused = response.status == http.client.BAD_REQUEST and response.length != 0
    return refused and NEEDS_TLS.encode() in response.peek()


def _context(base: str) -> ssl.SSLContext:
    try:
        return ssl_context(base)
    except UntrustedError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error


def refusal(response: http.client.HTTPResponse) -> CommandError:
    """Return the failure for an answer with status 400 or more: in OpenAI's format, as google.rpc.Status, or neither."""
    content = response.read()
    code = exit_of_http(response.status)
    hint = "llamesh login" if code is Exit.NOT_SIGNED_IN else ""
    wait = response.getheader("retry-after")
    parts = [f"try again after {wait} s"] if wait else []
    try:
        found = json.loads(content)
        error = found.get("error", found)
        for detail in found.get("details", ()):
            kind = str(detail.get("@type", "")).rpartition(".")[2]
            if kind == "LocalizedMessage":
                hint = hint or str(detail["message"])
            elif kind == "ErrorInfo":
                code = exit_of_http(
                    response.status, str(detail["reason"]), str(detail.get("metadata", {}).get("rule", ""))
                )
        return CommandError(str(error["message"]), parts=parts, hint=hint, code=code)
    except (ValueError, KeyError, TypeError, AttributeError):
        if content.lstrip().startswith(b"<"):
            cause = f"HTTP {response.status}: something else than llamesh answers there"
            hint = hint or "correct LLAMESH_URL or LLAMESH_INFERENCE_URL; `llamesh doctor` checks them"
            return CommandError(cause, parts=parts, hint=hint, code=code)
        words = content[:500].decode(errors="replace") or response.reason
        return CommandError(f"HTTP {response.status}: {words}", parts=parts, hint=hint, code=code)
