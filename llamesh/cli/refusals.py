"""Translates errors of the client to errors of the command: text, remedy and exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from llamesh.cli.connection import (
    NEEDS_TLS,
    UNVERIFIED,
    WITHOUT_TLS,
    clear_text,
    encrypted,
    inference_asked,
    not_llamesh,
    other_service,
    start_hint,
    untrusted,
)
from llamesh.cli.failure import CommandError, Exit, exit_of, unforeseen
from llamesh.cli.remedies import remedy_for
from llamesh.client.contexts import NoMeshSelectedError
from llamesh.client.errors import MeshError
from llamesh.client.names import AmbiguousNameError
from llamesh.client.profile import load_profile, on_this_machine
from llamesh.local_mesh import running_here

_INFERENCE_SHAPE = '{"error":'
"""Beginning of the body of an error at the inference port. No management call has such an answer."""
_NOT_BY_LOGIN = {"WRONG_CREDENTIALS", "USER_DISABLED"}
"""Reasons of refusals that a login cannot cure."""
_NO_GRPC = ("Failed parsing HTTP/2", "Received http2 header with status", "invalid value of content-type")
"""Parts of the messages of gRPC if the program at an address does not speak it."""


class NobodyAnswersError(CommandError):
    """Nobody answers at the address of the mesh."""


def translate(error: Exception, url: str = "") -> CommandError | None:
    """Return the command's failure for an error of the client; None for other errors. `url`: the mesh that was called, if known."""
    if isinstance(error, AmbiguousNameError):
        return CommandError(str(error), parts=error.ids, code=Exit.USAGE)
    if not isinstance(error, MeshError):
        return None
    if NEEDS_TLS in error.message and (plain := encrypted(url or load_profile().url)):
        return plain
    if WITHOUT_TLS in error.message:
        return clear_text(url or load_profile().url)
    if UNVERIFIED in error.message:
        return untrusted(url or load_profile().url, error.message[error.message.index(UNVERIFIED) :])
    if error.message.startswith(_INFERENCE_SHAPE):
        return inference_asked(url or load_profile().url)
    if error.reason == "NOT_IMPLEMENTED" and error.metadata.get("service"):
        return other_service(url or load_profile().url, error.metadata)
    # The message often repeats the fields.
    parts = [f"{item.field}: {item.description}" for item in error.fields if item.description not in error.message]
    decision = error.metadata.get("decisionId")
    if decision and error.reason != "DECISION_NOT_FOUND":
        parts.append(f"details: llamesh why {decision}")
    cause, hint = error.message, remedy_for(error.reason, error.metadata, error.remedy)
    if not error.reason and any(words in error.message for words in _NO_GRPC):
        return not_llamesh(url or _selected())
    failure = NobodyAnswersError if error.code == "UNAVAILABLE" and not error.reason else CommandError
    if failure is NobodyAnswersError:
        # gRPC's message names sockets and attempts; the user needs the address.
        cause = f"{_mesh(url)} does not answer"
        hint = start_hint(url or _selected())
        parts.append("connection refused" if "Connection refused" in error.message else error.message)
    if error.code == "DEADLINE_EXCEEDED" and error.message == "Deadline Exceeded":
        # Not gRPC's message either: the deadline is the client's.
        cause = f"{_mesh(url)} did not answer in time"
        hint = "`llamesh doctor` names the part that does not answer; it is restarted by itself"
    if error.code == "UNAUTHENTICATED" and error.reason not in _NOT_BY_LOGIN:
        hint = "llamesh login"
        if not _signed_in():
            cause = "you are not signed in"
            here = running_here(os.environ)
            asked = url or _selected()
            if here and on_this_machine(asked) and urlsplit(asked).port != urlsplit(here.management).port:
                cause += f" at {asked}"
                hint += f"; the management address of the mesh that runs here is {here.management}"
    code = exit_of(error.code, error.reason, error.metadata.get("rule", ""))
    if error.retry_after:
        parts.append(f"try again after {error.retry_after:g} s")
    return failure(cause, parts=parts, hint=hint, code=code)


@contextmanager
def refused_in_words(
    replace: Callable[[str], str], reasons: Collection[str] = ("INVALID_FIELD",), hint: str = ""
) -> Iterator[None]:
    """Say a refusal of the block in the words of a command. `replace` puts them into a message in place of fields of the request.

    `reasons`: those of the refusals that name fields. `hint`: what to do, if not what the refusal says.
    """
    try:
        yield
    except MeshError as error:
        failure = translate(error) if error.reason in reasons else None
        if failure is None:
            raise
        cause, *parts = map(replace, (failure.cause, *failure.parts))
        raise CommandError(cause, parts=parts, hint=hint or failure.hint, code=failure.code) from error


def command_error(error: Exception) -> CommandError:
    """The failure of a command for any error."""
    return error if isinstance(error, CommandError) else translate(error) or unforeseen(error)


def _signed_in() -> bool:
    """Whether a token is available."""
    try:
        return bool(load_profile().token)
    except NoMeshSelectedError:
        return False


def _selected() -> str:
    """The address of the selected mesh; empty if none runs."""
    try:
        return load_profile().url
    except NoMeshSelectedError:
        return ""


def _mesh(url: str) -> str:
    """Describe the mesh that was called, which may have ended meanwhile."""
    try:
        return f"the mesh at {url or load_profile().url}"
    except NoMeshSelectedError:
        return "the mesh of LLAMESH_HOME"
