"""The server or model that a conversation is with: what a request to it is addressed to.

The inference port knows ids of servers and served names. Another name, such as a model's id or alias, is looked up in the mesh after the
port has refused it, once for each question, so a conversation needs no management token unless it is needed for that. Before the first
question in a terminal, a name that is no UUID is compared with the port's list of served names, and looked up if the list lacks it.

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
from llamesh.cli.served_names import ANY, INFER
from llamesh.cli.token_claims import claims_of
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
        """Look up the word, because the inference port refused `name`, or does not list it. Return whether `name` is another one now.

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
    """Refuse a name that no server has, after it was looked up; a mesh that cannot be reached; and a token that is not valid.

    The list of served names is no condition of an answer. Any name passes if the port does not list all names: because the list is away or
    refused, or because the token may not use every model. A UUID passes unchecked.
    """
    try:
        names = listed_names(address, token)
    except NoListError as error:
        if error.code is Exit.NOT_SIGNED_IN:
            raise
        return
    if is_id(addressee.name) or addressee.name in names or not _may_use_all(token):
        return
    refusal = CommandError(f"no server has the model {text(addressee.name)}", code=Exit.NOT_FOUND)
    if not addressee.resolve_other_name(refusal):
        raise _with_names(refusal, names, addressee.name)


def with_served_names(refusal: CommandError, address: str, token: str, word: str) -> CommandError:
    """Return the failure for a refusal; if no server has the model, with the served names, and the one that the word is like."""
    if refusal.code is not Exit.NOT_FOUND:
        return refusal
    try:
        return _with_names(refusal, listed_names(address, token), word)
    except CommandError:
        return refusal


class NoListError(CommandError):
    """The inference port answers without a list of names, or not in time. The code is that of its answer."""


def listed_names(address: str, token: str) -> list[str]:
    """Return the served names that this token may use, as the inference port lists them.

    Raises NoListError, and CommandError if no connection can be made.
    """
    from llamesh.cli import web

    try:
        with web.answer(address, "GET", "/v1/models", token, timeout=LIST_SECONDS) as response:
            if response.status >= 400:
                refusal = web.refusal(response)
                raise NoListError(refusal.cause, parts=refusal.parts, hint=refusal.hint, code=refusal.code)
            return [str(item["id"]) for item in json.loads(response.read())["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NoListError("the inference port lists no models") from error
    except CommandError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise NoListError(error.cause, code=error.code) from error
        raise


def _may_use_all(token: str) -> bool:
    """Whether a request with this token may use every model, so that a list for it is complete."""
    return not token or f"{INFER}{ANY}" in (claims_of(token).get("scopes") or ())


def is_id(name: str) -> bool:
    """Whether a name has the form of an id, a UUID: it then goes into the path of a request."""
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _with_names(refusal: CommandError, names: list[str], word: str) -> CommandError:
    if not names:
        return CommandError(refusal.cause, hint="nothing is served yet: llamesh serve MODEL", code=refusal.code)
    near = nearest(word, names)
    hint = f"did you mean {near}?" if near else ""
    return CommandError(refusal.cause, parts=[f"served: {', '.join(names)}"], hint=hint, code=refusal.code)
