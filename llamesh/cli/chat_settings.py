"""Settings of a conversation's requests: their names, values and fields of a request. Pure.

The names are those of the request's fields; those of Ollama stand for them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from llamesh.cli.failure import CommandError, Exit
from llamesh.nearest import nearest

SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "max_tokens": int,
    "seed": int,
    "stop": list,
    "think": bool,
    "format": str,
}
OF_THE_CONVERSATION = ("system", "verbose")
"""Settings that are no fields of a request."""
OTHER_WORDS = {"num_predict": "max_tokens"}
"""Names of settings in other tools."""
SWITCHES = {"think": ("think", "on"), "nothink": ("think", "off")}
"""Words without a value that set one."""
UNCHANGEABLE = {
    "history": "questions are always kept for the next conversation, in a file of this user only",
    "wordwrap": "in a terminal words always stay whole at the edge",
}
"""What other tools can set and is always so here; also with `no` before it."""
DEFAULT = "default"
"""The value that gives a setting back to the server."""
_MIN_VALUES = {"temperature": 0, "top_p": 0, "min_p": 0, "repeat_last_n": -1, "max_tokens": -1}
"""Minimum of a setting; the engine refuses each request with a lower one."""
_MAX_VALUES = {"top_p": 1, "min_p": 1}
"""Maximum of a setting."""
_SWITCHED = {"on": True, "true": True, "off": False, "false": False}


def value_of(name: str, word: str) -> Any:
    """Return the value of a setting from what was typed. CommandError if there is no such setting or it cannot have this value."""
    kind = SETTINGS.get(name)
    if kind is None:
        known = (*SETTINGS, *OF_THE_CONVERSATION)
        meant = nearest(name, known)
        hint = f"did you mean {meant}?" if meant else "/set shows the settings"
        raise CommandError(f"there is no setting {name}", hint=hint, code=Exit.USAGE)
    if kind is list:
        return _words(word)
    if kind is str:
        if word != "json":
            raise CommandError(f"{name} is json, not {word!r}", hint=f"/set no{name} ends it", code=Exit.USAGE)
        return word
    if kind is bool:
        return switched(name, word)
    try:
        number = kind(word)
        if not math.isfinite(number):
            raise ValueError(word)
    except (ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise CommandError(f"{name} is {what}, not {word!r}", code=Exit.USAGE) from None
    _check_bounds(name, number)
    return number


def switched(name: str, word: str) -> bool:
    """Return whether a word switches something on. CommandError if it is no such word."""
    if word.lower() not in _SWITCHED:
        raise CommandError(f"{name} is on or off, not {word!r}", code=Exit.USAGE)
    return _SWITCHED[word.lower()]


def restores(name: str, word: str) -> bool:
    """Whether a word in place of a setting's value gives the setting back to the server. Quoted, a stop word may be any word."""
    return name in SETTINGS and (word == DEFAULT or (word == "none" and SETTINGS[name] is list))


def _check_bounds(name: str, number: float) -> None:
    least, most = _MIN_VALUES.get(name, -math.inf), _MAX_VALUES.get(name, math.inf)
    if name == "repeat_penalty" and number <= 0:
        raise CommandError(f"{name} is above 0, not {number:g}", hint=f"/set {name} 1 is no penalty", code=Exit.USAGE)
    if not least <= number <= most:
        bounds = f"at least {least}" if most == math.inf else f"{least} to {most}"
        raise CommandError(f"{name} is {bounds}, not {number:g}", hint=f"/set {name} {DEFAULT}", code=Exit.USAGE)


def typed(value: Any) -> str:
    """Return a value as it would be typed; the inverse of `value_of`."""
    if isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that has these settings."""
    found = dict(settings)
    if (think := found.pop("think", None)) is not None:
        found["chat_template_kwargs"] = {"enable_thinking": think}
    if found.pop("format", ""):
        found["response_format"] = {"type": "json_object"}
    return found


def _words(word: str) -> list[str]:
    """The words of a line, quoted ones as one."""
    try:
        return shlex.split(word)
    except ValueError:  # a quotation mark alone
        return [word]
