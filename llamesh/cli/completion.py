"""Completes a command line: commands, options, their values, and the names of models, servers and other things of the mesh.

Every Tab starts this program, so it imports little; it sends the mesh at most two REST queries, the second only if the first was answered,
each with a deadline of one second. If one fails, its names are not offered and no error is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError
from llamesh.cli.main import ALIASES, COMMANDS

if TYPE_CHECKING:
    from llamesh.cli.options import CommandOption

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+*-]*")
_NAMES = {name for commands in COMMANDS.values() for name in commands}
_LISTS = {
    "keys": ("/keys", "keys", ("key_id",)),
    "users": ("/users", "users", ("username",)),
    "contracts": ("/contracts", "contracts", ("display_name", "contract_id")),
    "downloads": ("/downloads", "downloads", ("name", "model_uuid")),
    "models": ("/models", "models", ("name", "aliases", "model_uuid")),
    "servers": ("/status", "servers", ("model_name", "server_uuid")),
    "served": ("/status", "servers", ("model_name",)),
}
"""The REST path that lists a kind of thing, and where the names stand in its answer."""
_SERVED_MODELS = "served models"
"""A further kind: the models that servers have, by name and alias. Such a name stands for the server."""
_CONTEXTS = "contexts"
"""A further kind, which no mesh is asked for."""
_FIRST: Mapping[tuple[str, ...], tuple[str, ...]] = {
    **{(name,): ("models",) for name in ("serve", "fit", "rm", "alias", "quantize")},
    **{(name,): ("servers", _SERVED_MODELS) for name in ("wait", "scale", "set", "sleep", "wake", "stop", "logs")},
    ("chat",): ("served", _SERVED_MODELS),
    ("run",): ("served", "models"),
    ("describe",): ("servers", "models"),
    ("keys", "revoke"): ("keys",),
    **{("users", verb): ("users",) for verb in ("disable", "enable", "password", "rm", "update")},
    **{("contracts", verb): ("contracts",) for verb in ("rm", "update")},
    **{("context", verb): (_CONTEXTS,) for verb in ("use", "rm")},
    **{("downloads", verb): ("downloads",) for verb in ("pause", "resume", "cancel", "retry", "rm")},
}
"""The kinds of things that the first word after a command may name."""
_SEVERAL = {
    ("stop",),
    ("rm",),
    ("keys", "revoke"),
    *((kind, "rm") for kind in ("context", "users", "contracts", "downloads")),
}
"""Commands of which further words name things of the same kinds."""
_OF_OPTIONS = {
    "contract": ("contracts",),
    "models": ("served",),
    "subject": ("users", "keys"),
    "model_draft": ("models",),
}
"""The kinds of things that the value of an option may name, by the argument of the command."""
_SCOPES = ("manage", "metrics", "infer:*")
_SHELLS = ("bash", "fish", "zsh")

Fetch = Callable[[str], object]
"""Asks the mesh: a REST path, answered as JSON."""


def candidates(words: Sequence[str], fetch: Fetch) -> list[str]:
    """What the last word could become, given all words after `llamesh`."""
    *before, current = words or [""]
    fetch = _asking_once(fetch)
    if not before or before == ["help"]:
        return _beginning(current, _NAMES)
    from llamesh.cli import options

    command, *given = ALIASES.get(before[0], before[0]), *before[1:]
    chain: tuple[str, ...] = (command,)
    if verbs := options.subcommands(command):
        if not given:
            return _beginning(current, verbs)
        chain, given = (command, given[0]), given[1:]
    known = {flag: option for option in options.options(*chain) for flag in option.flags}
    flag, equals, _ = current.partition("=")
    if equals and flag in known:
        return _beginning(current, [f"{flag}={value}" for value in _values(known[flag], fetch)])
    if given and (option := known.get(given[-1])) and not option.switch:
        return _beginning(current, _values(option, fetch))
    if current.startswith("-"):
        return _beginning(current, known)
    taken = _positional(given, known)
    if chain == ("completion",):
        return [] if taken else _beginning(current, _SHELLS)
    if taken and chain == ("alias",) and "--remove" in given:
        offered = _aliases(taken[0], fetch)
    elif taken and chain not in _SEVERAL:
        offered = []
    else:
        offered = [name for kind in _FIRST.get(chain, ()) for name in _names(fetch, kind)]
    return _beginning(current, [name for name in offered if name not in taken])


def ask_mesh(path: str) -> object:
    """Ask the mesh of the profile, briefly."""
    from llamesh.cli import web
    from llamesh.cli.connection import meant

    profile = meant()
    with web.answer(profile.url, "GET", path, profile.token, timeout=1.0) as response:
        return json.loads(response.read())


def _positional(given: Sequence[str], known: Mapping[str, CommandOption]) -> list[str]:
    """The words that are neither options nor values of options."""
    found = []
    value = False
    for word in given:
        if not value and not word.startswith("-"):
            found.append(word)
        value = not value and word in known and not known[word].switch
    return found


def _values(option: CommandOption, fetch: Fetch) -> list[str]:
    """What the value of an option could be."""
    if option.choices:
        return list(option.choices)
    if option.name == "scope":
        return [*_SCOPES, *(f"infer:{name}" for name in _names(fetch, "served"))]
    if option.name == "unset":
        from llamesh.runtime_parameters import all_parameters

        return [name.replace("_", "-") for name in all_parameters()]
    return [name for kind in _OF_OPTIONS.get(option.name, ()) for name in _names(fetch, kind)]


def _asking_once(fetch: Fetch) -> Fetch:
    """Return a `Fetch` that asks for each path once, and answers with an empty object if that fails."""
    answers: dict[str, object] = {}

    def ask(path: str) -> object:
        if path not in answers:
            try:
                answers[path] = fetch(path)
            except (CommandError, ValueError):
                answers[path] = {}
        return answers[path]

    return ask


def _names(fetch: Fetch, kind: str) -> list[str]:
    """The names of the things of a kind."""
    if kind == _CONTEXTS:
        from llamesh.client.contexts import context_names

        return context_names()
    if kind == _SERVED_MODELS:
        served = {uuid for item in _items(fetch, "servers") for uuid in _texts(item.get("model_uuid"))}
        models = _items(fetch, "models") if served else []
        return _names_at(("name", "aliases"), [item for item in models if served & {*_texts(item.get("model_uuid"))}])
    return _names_at(_LISTS[kind][2], _items(fetch, kind))


def _aliases(model: str, fetch: Fetch) -> list[str]:
    """The aliases of the model with this id, name or alias."""
    keys = _LISTS["models"][2]
    return _names_at(("aliases",), [item for item in _items(fetch, "models") if model in _names_at(keys, [item])])


def _items(fetch: Fetch, kind: str) -> list[Mapping[str, object]]:
    """The things of a kind as the mesh lists them; none if it does not answer."""
    path, field, _ = _LISTS[kind]
    found = fetch(path)
    items = found.get(field) if isinstance(found, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _names_at(keys: Iterable[str], items: Iterable[Mapping[str, object]]) -> list[str]:
    """The names at these keys of things."""
    # A shell runs what a command line contains: nothing is offered that is more than a name.
    return [name for item in items for key in keys for name in _texts(item.get(key)) if _NAME.fullmatch(name)]


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value or "")]


def _beginning(current: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})
