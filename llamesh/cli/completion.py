"""What could come next on a command line: commands, options, and the names of models and servers of the mesh.

The shell asks with every Tab, so nothing heavy is imported where a command's name is completed, and the mesh is asked by REST, for a
second at most. A failure completes nothing; it never shows.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence

from llamesh.cli.failure import CommandError
from llamesh.cli.main import ALIASES, COMMANDS

_PATHS = {name: path for commands in COMMANDS.values() for name, (path, _) in commands.items()}
_SUBCOMMANDS = {
    "downloads": ("cancel", "ls", "retry", "rm"),
    "keys": ("create", "list", "revoke"),
    "users": ("create", "list", "password", "rm", "update"),
    "contracts": ("create", "list", "rm", "update"),
}
_VALUES = {
    ("keys", "revoke"): ("/keys", "keys", ("key_id",)),
    **{
        ("users", verb): ("/users", "users", ("username",))
        for verb in ("disable", "enable", "password", "rm", "update")
    },
    **{("contracts", verb): ("/contracts", "contracts", ("contract_id",)) for verb in ("rm", "update")},
    **{("downloads", verb): ("/downloads", "downloads", ("model_uuid",)) for verb in ("cancel", "retry", "rm")},
}
"""What a subcommand's first value may be: the REST path that lists them, and where the names stand in its answer."""
_MODELS = {"serve", "fit", "rm"}
_SERVERS = {"describe", "wait", "scale", "sleep", "wake", "stop", "logs"}
_SERVED = {"chat"}
_EITHER = {"run"}

Fetch = Callable[[str], object]
"""Asks the mesh: a REST path, answered as JSON."""


def candidates(words: Sequence[str], fetch: Fetch) -> list[str]:
    """What the last word could become, given all words after `llamesh`."""
    *before, current = words or [""]
    if not before:
        return _beginning(current, _PATHS)
    command = ALIASES.get(before[0], before[0])
    if command in _SUBCOMMANDS:
        if len(before) == 1:
            return _beginning(current, _SUBCOMMANDS[command])
        listing = _VALUES.get((command, before[1])) if len(before) == 2 and not current.startswith("-") else None
        return _beginning(current, _names(fetch, *listing)) if listing else []
    if current.startswith("-"):
        return _beginning(current, _options(command))
    if len(before) > 1:
        return []
    if command in _EITHER:
        names = [
            *_names(fetch, "/status", "servers", ("model_name",)),
            *_names(fetch, "/models", "models", ("name",)),
        ]
        return _beginning(current, names)
    if command in _MODELS:
        return _beginning(current, _names(fetch, "/models", "models", ("name", "model_uuid")))
    if command in _SERVERS:
        return _beginning(current, _names(fetch, "/status", "servers", ("model_name", "server_uuid")))
    if command in _SERVED:
        return _beginning(current, _names(fetch, "/status", "servers", ("model_name",)))
    return []


def ask_mesh(path: str) -> object:
    """Ask the mesh of the profile, briefly."""
    from llamesh.cli import web
    from llamesh.cli.connection import meant

    profile = meant()
    with web.answer(profile.url, "GET", path, profile.token, timeout=1.0) as response:
        return json.loads(response.read())


def _names(fetch: Fetch, path: str, field: str, keys: Sequence[str]) -> list[str]:
    try:
        found = fetch(path)
    except (CommandError, ValueError):
        return []
    items = found.get(field, ()) if isinstance(found, dict) else ()
    return [str(item[key]) for item in items for key in keys if item.get(key)]


def _options(command: str) -> list[str]:
    if command not in _PATHS:
        return []
    module, _, function = _PATHS[command].partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), function))
    return [
        f"--{name.replace('_', '-')}"
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _beginning(current: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})
