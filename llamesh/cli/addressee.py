"""The server or model that a conversation is with: what a request to it is addressed to.

The inference port knows ids of servers and served names. Another name, such as a model's id or alias, is looked up in the mesh after the
port has refused it, once for each question, so a conversation needs no management token unless it is needed for that. A conversation in a
terminal begins only with a name that is served: the port's list of served names is read before the first question.

Invariant: the result of a lookup is used until the port refuses it. So a server that was replaced, or declared after the first question, is
found by the next one.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from llamesh.cli.connection import connected, meant
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import ServerNotUniqueError, find_server
from llamesh.cli.output import text
from llamesh.nearest import nearest

LIST_SECONDS = 5.0
"""Deadline in seconds of the call that lists the served names."""


class Addressee:
    """What a conversation is with. `name` is by what requests name it; `word`, by default the same, is looked up if it is refused."""

    def __init__(self, name: str, word: str = "") -> None:
        self.name = name
        self._word = word or name

    def addressed(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request: a server's id goes into the path, a name into the body."""
        if is_id(self.name):
            return f"/{uuid.UUID(self.name)}/v1/chat/completions", request
        return "/v1/chat/completions", {"model": self.name, **request}

    def resolve_other_name(self, refusal: CommandError) -> bool:
        """Look up the word, because the inference port refused `name`. Return whether `name` is another one now.

        CommandError if the word names a model that no server serves, or several servers.
        """
        if refusal.code is not Exit.NOT_FOUND or not meant().token:
            return False
        from llamesh.client.errors import MeshError

        try:
            with connected() as mesh:
                found = find_server(mesh, self._word)
        except ServerNotUniqueError:
            raise
        except (CommandError, MeshError, LookupError, ValueError):
            return False
        before, self.name = self.name, found
        return found != before


def check_served(addressee: Addressee, address: str, token: str) -> None:
    """Refuse a name that no server has, after it was looked up, and a mesh that does not answer or takes no request with this token.

    An id passes, and so does any name if the port has no list of names.
    """
    try:
        names = served_names(address, token)
    except CommandError as error:
        if error.code in {Exit.FAILED, Exit.NOT_FOUND}:
            return
        raise
    if is_id(addressee.name) or addressee.name in names:
        return
    refusal = CommandError(f"no server has the model {text(addressee.name)}", code=Exit.NOT_FOUND)
    if not addressee.resolve_other_name(refusal):
        raise _naming(refusal, names, addressee.name)


def with_served_names(refusal: CommandError, address: str, token: str, word: str) -> CommandError:
    """Return the failure for a refusal; if no server has the model, with the served names, and the one that the word is like."""
    if refusal.code is not Exit.NOT_FOUND:
        return refusal
    try:
        return _naming(refusal, served_names(address, token), word)
    except CommandError:
        return refusal


def served_names(address: str, token: str) -> list[str]:
    """Return the names that the inference port lists for this token. CommandError if it lists none in time."""
    from llamesh.cli import web

    with web.answer(address, "GET", "/v1/models", token, timeout=LIST_SECONDS) as response:
        if response.status >= 400:
            raise web.refusal(response)
        content = response.read()
    try:
        return [str(item["id"]) for item in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError("the inference port lists no models") from error


def is_id(name: str) -> bool:
    """Whether a name is the id of a server or of a model."""
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _naming(refusal: CommandError, names: list[str], word: str) -> CommandError:
    if not names:
        return CommandError(refusal.cause, hint="nothing is served yet: llamesh serve MODEL", code=refusal.code)
    meant = nearest(word, names)
    hint = f"did you mean {meant}?" if meant else ""
    return CommandError(refusal.cause, parts=[f"served: {', '.join(names)}"], hint=hint, code=refusal.code)
