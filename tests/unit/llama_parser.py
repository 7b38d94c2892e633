"""llama-server's own parser, as the embedded library carries it: what its options are, and what a command line sets.

The library exports the parser of the program that it is built from (`common_params_parse` of llama.cpp's common/arg.cpp) and keeps its
parameters inside of a CommonParams object. Only tests look there: the parser ends the process where it prints.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import xllamacpp
from xllamacpp import xllamacpp as native

_PARSE = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
_SERVER = 12
"""LLAMA_EXAMPLE_SERVER of llama.cpp's common/common.h: the options of llama-server."""
_HEADER = 16
"""Bytes of an object of CPython before its own: a CommonParams holds llama.cpp's parameters there."""


def library_build() -> int:
    """The build of llama.cpp in the library."""
    return int(xllamacpp.__version__.split(".")[-1])


def command_line_options() -> list[tuple[str, ...]]:
    """The spellings of every option of llama-server."""
    heads = (line for line in _help().splitlines() if re.match(r"--?[a-zA-Z]", line))
    return [tuple(re.match(r"(?:(?:, +)?--?[a-zA-Z][\w.-]*)+", head)[0].replace(",", " ").split()) for head in heads]  # type: ignore[index]


def builtin_chat_templates() -> list[str]:
    """The names of llama.cpp's own chat templates."""
    text = " ".join(_help().split("list of built-in templates:")[1].split("(env:")[0].split())
    return text.split(", ")


@cache
def _help() -> str:
    command = [sys.executable, __file__, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parsed(arguments: Sequence[str]) -> Any:
    """CommonParams as llama-server has them after these arguments; AssertionError where it refuses them."""
    params = xllamacpp.CommonParams()
    parse = ctypes.CDLL(native.__file__)[_PARSE]
    parse.restype = ctypes.c_bool
    words = [b"llama-server", *(word.encode() for word in arguments)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    assert parse(len(words), argv, ctypes.c_void_p(id(params) + _HEADER), _SERVER, None), arguments
    return params


def values(params: Any) -> dict[str, Any]:
    """Everything that CommonParams shows, by dotted name."""
    found: dict[str, Any] = {}
    for name in dir(params):
        if name.startswith("_"):
            continue
        try:
            value = getattr(params, name)
        except Exception:
            continue
        if type(value).__module__.startswith("xllamacpp") and not isinstance(value, int) and not callable(value):
            found |= {f"{name}.{inner}": each for inner, each in values(value).items()}
        elif not callable(value):
            # Adapters are compared by identity.
            found[name] = repr(value) if name == "lora_adapters" else value
    return found


if __name__ == "__main__":
    parsed(sys.argv[1:])
