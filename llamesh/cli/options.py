"""Options of a command, as completion offers them: spellings, and the values that each may have. Read from the signature of the command."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import App, Parameter

from llamesh.cli.main import COMMANDS

PATHS = {name: path for commands in COMMANDS.values() for name, (path, _) in commands.items()}


@dataclass(frozen=True, slots=True)
class CommandOption:
    """One option."""

    name: str
    """Name of the argument of the command."""
    flags: tuple[str, ...]
    """Its spellings; those of a switch that turn it off too."""
    choices: tuple[str, ...]
    """Words that its value may be; empty if it may be anything."""
    switch: bool
    """Whether it needs no value."""


def subcommands(command: str) -> list[str]:
    """The words that may follow a command; empty if it has none."""
    found = _loaded(command)
    return [name for name in found if not name.startswith("-")] if isinstance(found, App) else []


def options(command: str, subcommand: str = "") -> list[CommandOption]:
    """The options of a command; empty if there is no such command."""
    found = _loaded(command)
    if isinstance(found, App):
        if subcommand not in subcommands(command):
            return []
        found = found[subcommand].default_command
    if found is None:
        return []
    signature = inspect.signature(found, eval_str=True)
    read = [_option(item) for item in signature.parameters.values() if item.kind is inspect.Parameter.KEYWORD_ONLY]
    return [option for option in read if option is not None]


@cache
def _loaded(command: str) -> App | Callable[..., Any] | None:
    if command not in PATHS:
        return None
    module, _, attribute = PATHS[command].partition(":")
    found: App | Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def _option(item: inspect.Parameter) -> CommandOption | None:
    """One option; None if help does not list it."""
    kind, described = item.annotation, []
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        described = [each for each in rest if isinstance(each, Parameter)]
    if any(each.show is False for each in described):
        return None
    name = f"--{item.name.replace('_', '-')}"
    named = next((_words(each.name) for each in described if each.name), (name,))
    switch = bool in {kind, *get_args(kind)}
    flags = [flag for flag in named if flag.startswith("--")]
    if switch:
        negative = next((each.negative for each in described if each.negative is not None), (f"--no-{flags[0][2:]}",))
        flags += [flag for flag in _words(negative) if flag.startswith("--")]
    return CommandOption(item.name, tuple(flags), ("false", "true") if switch else tuple(_choices(kind)), switch)


def _words(names: str | Iterable[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _choices(kind: Any) -> list[str]:
    """The words of a Literal, of a union with one, or of a list of them."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if get_origin(kind) in {Union, types.UnionType, Annotated}:
        return [word for part in get_args(kind) for word in _choices(part)]
    return []
