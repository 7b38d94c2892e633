"""Progress of a download or a job: one line that is redrawn in a terminal, one plain line at each tenth elsewhere.

Invariant: a drawn line is narrower than the terminal, so it never wraps and can be redrawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamesh.cli.output import size, text
from llamesh.cli.printing import note
from llamesh.cli.remedies import of_failed_download
from llamesh.cli.silence import announcement, tells

if TYPE_CHECKING:
    from llamesh.client.silence import Silence
    from llamesh.client.sync import Pull
    from llamesh.v1.download_pb2 import Download
    from llamesh.v1.model_pb2 import Model

_MIN_BAR = 10
_MAX_BAR = 40
_ASCII = str.maketrans("█░…", "#-~")
_STEP = 10
"""Percent between two plain lines."""


@dataclass(frozen=True, slots=True)
class ProgressFigures:
    """How far something has come: its name, the facts in words, and the units that are done of all; `total` is 0 if it is not known."""

    name: str
    facts: str
    done: int
    total: int

    @property
    def percent(self) -> int:
        """The percentage of units that are done."""
        return share(self.done, self.total)


def line(now: ProgressFigures, width: int) -> str:
    """Return progress in less than `width` columns: name, bar, facts."""
    room = width - 1 - len(now.facts) - 2
    if room < len(now.name):
        short = f"{now.name[: max(room - 1, 0)]}…" if room > 1 else ""
        return f"{short}  {now.facts}".strip()[: width - 1]
    bar = min(room - len(now.name) - 2, _MAX_BAR)
    if not now.total or bar < _MIN_BAR:
        return f"{now.name}  {now.facts}"
    full = bar * min(now.done, now.total) // now.total
    return f"{now.name}  {'█' * full}{'░' * (bar - full)}  {now.facts}"


def duration(seconds: float) -> str:
    """A length of time for people: 5s, 2m03s, 1h05m."""
    whole = max(int(seconds + 0.5), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def followed(pull: Pull) -> Model:
    """Wait for a model and show its progress. Each reason to wait is said once. If the download fails, its error says how to repeat it."""
    from llamesh.client.errors import MeshError
    from llamesh.v1 import download_pb2

    shown = ProgressLine(unknown=False)
    seen = False

    def look(now: Download) -> None:
        nonlocal seen
        shown.say(_reason(now))
        # Bytes that were there before need no line.
        if seen or now.state != download_pb2.DOWNLOAD_STATE_SUCCEEDED:
            shown.look(of_download(now))
        seen = seen or bool(now.bytes_total)

    try:
        with shown.shows(pull.silence):
            return pull.wait(on_progress=look)
    except MeshError as error:
        if pull.download.state == download_pb2.DOWNLOAD_STATE_FAILED:
            error.metadata |= of_failed_download(pull.download)
        raise
    finally:
        shown.clear()


class ProgressLine:
    """Shows progress on standard error. `unknown`: on a pipe, also what has no total yet gets a line.

    Invariant: other lines are written after `clear` only, so none is glued to a drawn one.
    """

    def __init__(self, *, unknown: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._unicode = "utf" in (sys.stderr.encoding or "").lower()
        self._unknown = unknown
        self._drawn = False
        self._told = ("", 0)
        self._said = ""
        self._last: ProgressFigures | None = None

    def look(self, now: ProgressFigures) -> None:
        """Draw the progress; on a pipe, print it if its name or its tenth has changed."""
        self._last = now
        if self._terminal:
            self._draw(now)
            return
        told = (now.name, now.percent // _STEP)
        if told != self._told and (now.total or self._unknown):
            self._told = told
            note(f"{now.name}  {now.facts.strip()}".rstrip())

    def say(self, words: str) -> None:
        """Print a line, once until the words change. Empty words are not printed."""
        if words and words != self._said:
            self._said = words
            self.clear()
            note(text(words))

    @contextmanager
    def shows(self, silence: Silence) -> Iterator[None]:
        """Say during the block that the mesh does not answer, and draw for how long in place of the facts, which are out of date."""
        announce = announcement(self.say)

        def told(seconds: float) -> None:
            announce(seconds)
            if self._terminal and self._last:
                facts = f"no answer for {duration(seconds)}" if seconds else self._last.facts
                self._draw(replace(self._last, facts=facts))

        with tells(silence, told):
            yield

    def clear(self) -> None:
        """Remove a drawn line."""
        if self._drawn:
            self._drawn = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _draw(self, now: ProgressFigures) -> None:
        from shutil import get_terminal_size

        self._drawn = True
        drawn = text(line(now, get_terminal_size().columns))
        sys.stderr.write(f"\r{drawn if self._unicode else drawn.translate(_ASCII)}\x1b[K")
        sys.stderr.flush()


def of_download(now: Download) -> ProgressFigures:
    """Return the progress of a download: percent, bytes, rate and time left."""
    return ProgressFigures(text(now.model_uuid), _facts(now), now.bytes_done, now.bytes_total)


def _reason(now: Download) -> str:
    """Say why a download waits, or that it is paused; empty if it does neither."""
    from llamesh.v1 import download_pb2

    reason = now.error.message if now.state == download_pb2.DOWNLOAD_STATE_QUEUED else ""
    if now.state == download_pb2.DOWNLOAD_STATE_PAUSED:
        reason = f"is paused: `llamesh downloads resume {now.model_uuid}` lets it go on"
    return reason and f"{now.model_uuid} {reason}"


def _facts(now: Download) -> str:
    remaining = f"{left(now)} left" if left(now) else ""
    return "  ".join(item for item in (_percent(now), _bytes(now), _rate(now), remaining) if item)


def percent(now: Download) -> int:
    """Return the percentage of bytes received."""
    return share(now.bytes_done, now.bytes_total)


def share(done: int, total: int) -> int:
    """Return the percentage that is done; 0 if the total is not known."""
    return min(100 * done // total, 100) if total else 0


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
