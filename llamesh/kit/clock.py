"""The time of day in UTC. Composition roots pass `utc_now` to their parts; other code takes a clock as an argument, so that tests can set
the time."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time, with its time zone."""
    return datetime.now(UTC)
