"""What a server that the settings name said when `llamesh doctor` asked it."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 5.0
"""How long each answer is waited for."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What one of them said."""

    check: str
    problem: str
    """Empty if it can be used."""
    found: str
    fix: str = ""
    clock_seconds: float | None = None
    """Its clock minus ours, if it told the time."""
