"""Findings of the checks of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check."""

    check: str
    state: State
    found: str
    fix: str = ""
