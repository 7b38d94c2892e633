"""llama-server's options that a server may not set, with the reason. The table is llama_options.yaml; its first lines explain it.

Invariant: each option is in the table once, and no option that a server may set is in it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llamesh.kit.yaml_files import read_yaml

_FILE = Path(__file__).with_name("llama_options.yaml")


class Treatment(enum.Enum):
    """How llamesh treats an option."""

    SET = "set"
    REFUSED = "refused"
    MEANINGLESS = "meaningless"


@dataclass(frozen=True, slots=True)
class Option:
    """One option that a server may not set."""

    flags: tuple[str, ...]
    """Its spellings."""
    treatment: Treatment
    reason: str
    instead: str
    """The flag of the nearest parameter that a server may set; empty if there is none."""


@cache
def options() -> Mapping[str, Option]:
    """Return the options by spelling."""
    return {flag: option for option in table() for flag in option.flags}


@cache
def table() -> tuple[Option, ...]:
    """Return the options in the order of the file."""
    return tuple(
        Option(tuple(item["flags"]), Treatment(group["treatment"]), group["reason"], item.get("instead", ""))
        for group in _document()["groups"]
        for item in group["options"]
    )


def build() -> int:
    """Return the llama.cpp build that the options were read from."""
    return int(_document()["build"])


@cache
def _document() -> Any:
    return read_yaml(_FILE)
