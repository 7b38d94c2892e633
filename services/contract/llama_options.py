"""llama-server's options that a server may not be given, with the reason: the table llama_options.yaml, whose head explains it.

Invariant: each option is in the table once, and none that may be given is in it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("llama_options.yaml")


class Treatment(enum.Enum):
    """How llamesh treats an option."""

    SET = "set"
    REFUSED = "refused"
    MEANINGLESS = "meaningless"


@dataclass(frozen=True, slots=True)
class Option:
    """One option that a server may not be given."""

    flags: tuple[str, ...]
    """Its spellings."""
    treatment: Treatment
    reason: str
    instead: str
    """The flag of the nearest parameter that may be given; empty if there is none."""


@cache
def options() -> Mapping[str, Option]:
    """The options by spelling."""
    return {flag: option for option in table() for flag in option.flags}


@cache
def table() -> tuple[Option, ...]:
    """The options in the order of the file."""
    return tuple(
        Option(tuple(item["flags"]), Treatment(group["treatment"]), group["reason"], item.get("instead", ""))
        for group in _document()["groups"]
        for item in group["options"]
    )


def build() -> int:
    """The llama.cpp build whose options these are."""
    return int(_document()["build"])


@cache
def _document() -> Any:
    return yaml.safe_load(_FILE.read_text())
