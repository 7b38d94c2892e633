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
_SWITCHED = {"on": True, "true": True, "off": False, "false": False}


def value_of(name: str, word: str) -> Any:
    """Return the value of a setting from what was typed. CommandError if there is no such setting or it cannot have this value."""
    kind = SETTINGS.get(name)
    if kind is None:
        known = (*SETTINGS, *OF_THE_CONVERSATION)
        meant = nearest(name, known)
        hint = f"did you mean {meant}?" if meant else f"settings: {', '.join(known)}"
        raise CommandError(f"there is no setting {name}", hint=hint, code=Exit.USAGE)
    if kind is list:
        return _words(word)
    if kind is str:
        if word != "json":
            raise CommandError(f"{name} is json, not {word!r}", hint=f"/set no{name} ends it", code=Exit.USAGE)
        return word
    if kind is bool:
        if word.lower() not in _SWITCHED:
            raise CommandError(f"{name} is on or off, not {word!r}", code=Exit.USAGE)
        return _SWITCHED[word.lower()]
    try:
        number = kind(word)
        if not math.isfinite(number):
            raise ValueError(word)
    except (ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise CommandError(f"{name} is {what}, not {word!r}", code=Exit.USAGE) from None
    return number


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
