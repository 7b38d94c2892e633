"""The progress of a download: one line that is redrawn in a terminal, one plain line at each tenth elsewhere.

Invariant: a drawn line is narrower than the terminal, so it never wraps and can be redrawn.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llamesh.cli.output import size, text
from llamesh.cli.printing import note

if TYPE_CHECKING:
    from llamesh.client.sync import Pull
    from llamesh.v1.download_pb2 import Download
    from llamesh.v1.model_pb2 import Model

_MIN_BAR = 10
_MAX_BAR = 40
_ASCII = str.maketrans("█░…", "#-~")
_STEP = 10
"""Percent between two plain lines."""


def line(now: Download, width: int) -> str:
    """The state of a download in less than `width` columns: name, percent, bytes, rate and time left."""
    facts = _facts(now)
    name = text(now.model_uuid)
    room = width - 1 - len(facts) - 2
    if room < len(name):
        short = f"{name[: max(room - 1, 0)]}…" if room > 1 else ""
        return f"{short}  {facts}".strip()[: width - 1]
    bar = min(room - len(name) - 2, _MAX_BAR)
    if not now.bytes_total or bar < _MIN_BAR:
        return f"{name}  {facts}"
    full = bar * min(now.bytes_done, now.bytes_total) // now.bytes_total
    return f"{name}  {'█' * full}{'░' * (bar - full)}  {facts}"


def duration(seconds: float) -> str:
    """A length of time for people: 5s, 2m03s, 1h05m."""
    whole = max(int(seconds + 0.5), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def followed(pull: Pull) -> Model:
    """Wait for a model and show its progress. Each reason to wait is said once."""
    shown: _Drawn | _Plain = _Drawn() if sys.stderr.isatty() else _Plain()
    reasons = _Reasons(shown)

    def look(now: Download) -> None:
        reasons.look(now)
        shown.look(now)

    try:
        return pull.wait(on_progress=look)
    finally:
        shown.clear()


class _Drawn:
    """One line of the terminal, redrawn."""

    def __init__(self) -> None:
        self._unicode = "utf" in (sys.stderr.encoding or "").lower()

    def look(self, now: Download) -> None:
        """Draw the download as it is now."""
        from shutil import get_terminal_size

        drawn = text(line(now, get_terminal_size().columns))
        sys.stderr.write(f"\r{drawn if self._unicode else drawn.translate(_ASCII)}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


class _Plain:
    """Lines for a log: one at every tenth."""

    def __init__(self) -> None:
        self._said = -1

    def look(self, now: Download) -> None:
        """Print the progress if it has reached the next step. Bytes that were there before need no line."""
        from llamesh.v1 import download_pb2

        step = percent(now) // _STEP
        there = now.state == download_pb2.DOWNLOAD_STATE_SUCCEEDED and self._said < 0
        if now.bytes_total and step != self._said and not there:
            self._said = step
            note(f"{text(now.model_uuid)}  {_facts(now).strip()}")

    def clear(self) -> None:
        """Lines stay."""


class _Reasons:
    """Says why a download waits or that it is paused, once until the reason changes."""

    def __init__(self, shown: _Drawn | _Plain) -> None:
        self._shown = shown
        self._said = ""

    def look(self, now: Download) -> None:
        """Look at the download as it is now."""
        from llamesh.v1 import download_pb2

        reason = now.error.message if now.state == download_pb2.DOWNLOAD_STATE_QUEUED else ""
        if now.state == download_pb2.DOWNLOAD_STATE_PAUSED:
            reason = f"is paused: `llamesh downloads resume {now.model_uuid}` lets it go on"
        if reason and reason != self._said:
            self._said = reason
            self._shown.clear()
            note(text(f"{now.model_uuid} {reason}"))


def _facts(now: Download) -> str:
    remaining = f"{left(now)} left" if left(now) else ""
    return "  ".join(item for item in (_percent(now), _bytes(now), _rate(now), remaining) if item)


def percent(now: Download) -> int:
    """Return the percentage of bytes received."""
    return min(100 * now.bytes_done // now.bytes_total, 100) if now.bytes_total else 0


def _percent(now: Download) -> str:
    from llamesh.v1 import download_pb2

    if now.state == download_pb2.DOWNLOAD_STATE_QUEUED:
        return "waits"
    if now.state == download_pb2.DOWNLOAD_STATE_PAUSED:
        return "paused"
    return f"{percent(now):3d}%" if now.bytes_total else ""


def _bytes(now: Download) -> str:
    if not now.bytes_total:
        return size(now.bytes_done) if now.bytes_done else ""
    return f"{size(now.bytes_done)} of {size(now.bytes_total)}"


def _rate(now: Download) -> str:
    return f"{size(now.bytes_per_second)}/s" if now.bytes_per_second else ""


def left(now: Download) -> str:
    """How long the rest takes at the present rate; empty if it is not known."""
    missing = now.bytes_total - now.bytes_done
    return duration(missing / now.bytes_per_second) if now.bytes_per_second and missing > 0 else ""
