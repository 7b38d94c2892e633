"""The server or model that a conversation is with: what a request to it is addressed to.

The inference port knows ids of servers and served names. Another name, such as a model's id or alias, is looked up in the mesh after the
port has refused it, once for each question, so a conversation needs no management token unless it is needed for that.

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
from llamesh.nearest import nearest

LIST_SECONDS = 5.0
"""Deadline in seconds of the call that lists the served names for a refusal."""


class Addressee:
    """What a conversation is with. `name` is by what requests name it; `word`, by default the same, is looked up if it is refused."""

    def __init__(self, name: str, word: str = "") -> None:
        self.name = name
        self._word = word or name

    def addressed(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request: a server's id goes into the path, a name into the body."""
        try:
            return f"/{uuid.UUID(self.name)}/v1/chat/completions", request
        except ValueError:
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


def with_served_names(refusal: CommandError, address: str, token: str, word: str) -> CommandError:
    """Return the failure for a refusal; if no server has the model, with the served names, and the one that the word is like."""
    if refusal.code is not Exit.NOT_FOUND:
        return refusal
    from llamesh.cli import web

    try:
        with web.answer(address, "GET", "/v1/models", token, timeout=LIST_SECONDS) as response:
            names = [str(item["id"]) for item in json.loads(response.read())["data"]]
    except (CommandError, ValueError, KeyError, TypeError):
        return refusal
    if not names:
        return CommandError(refusal.cause, hint="nothing is served yet: llamesh serve MODEL", code=refusal.code)
    meant = nearest(word, names)
    hint = f"did you mean {meant}?" if meant else ""
    return CommandError(refusal.cause, parts=[f"served: {', '.join(names)}"], hint=hint, code=refusal.code)
