"""The report of a server that `llamesh doctor` probed."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 5.0
"""Deadline of each answer in seconds."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The result of probing one server."""

    check: str
    problem: str
    """Problem of the server; empty if it can be used."""
    found: str
    fix: str = ""
    clock_seconds: float | None = None
    """The server's clock minus this machine's, in seconds; None if the server returned no time."""
