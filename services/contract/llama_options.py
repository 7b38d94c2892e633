"""What becomes of llama-server's options that are no parameters of a server: one table, llama_options.yaml, whose head explains it.

Invariant: no option is in it that may be given, and each is in it once.
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
    """What becomes of an option."""

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
    """The flag of the nearest parameter that may be given; empty where there is none."""


@cache
def options() -> Mapping[str, Option]:
    """Each option by each of its spellings."""
    return {flag: option for option in table() for flag in option.flags}


@cache
def table() -> tuple[Option, ...]:
    """Each option, in the order of the file."""
    return tuple(
        Option(tuple(item["flags"]), Treatment(group["treatment"]), group["reason"], item.get("instead", ""))
        for group in _document()["groups"]
        for item in group["options"]
    )


def build() -> int:
    """The llama.cpp whose options these are."""
    return int(_document()["build"])


@cache
def _document() -> Any:
    return yaml.safe_load(_FILE.read_text())
