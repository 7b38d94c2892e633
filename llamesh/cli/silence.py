"""Says that the mesh does not answer a command that waits, and ends the command if it stays silent.

A watch reconnects, because members restart. Shorter interruptions than MIN_TOLD are not worth a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamesh.cli.printing import note

if TYPE_CHECKING:
    from llamesh.client.silence import Silence
    from llamesh.client.sync import Client

MAX_SILENCE = 60.0
"""Maximum seconds without an answer of the mesh for which a command waits."""
MIN_TOLD = 1.0
"""Minimum seconds without an answer that are told."""
_SILENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Codes of errors after which it is not known what the mesh does."""


def bound(mesh: Client) -> None:
    """Let the waits of a client end after MAX_SILENCE, and say on standard error that the mesh does not answer."""
    mesh.silence.max_seconds = MAX_SILENCE
    mesh.silence.told = announcement(note)


def announcement(say: Callable[[str], None]) -> Callable[[float], None]:
    """Return what tells people, once each, that the mesh does not answer and that it answers again."""
    silent = False

    def told(seconds: float) -> None:
        nonlocal silent
        if not silent and seconds >= MIN_TOLD:
            silent = True
            say(f"the mesh has not answered for {seconds:.0f}s; waiting for it until {MAX_SILENCE:.0f}s have passed")
        elif silent and not seconds:
            silent = False
            say("the mesh answers again")

    return told


@contextmanager
def tells(silence: Silence, told: Callable[[float], None]) -> Iterator[None]:
    """Call `told` during the block if the mesh does not answer, in place of what was called before."""
    before, silence.told = silence.told, told
    try:
        yield
    finally:
        silence.told = before


def is_silent(silence: Silence, error: BaseException) -> bool:
    """Whether the mesh has not answered lately, so that it is not known what it does. `error`: what has ended the wait."""
    return bool(silence.seconds) or getattr(error, "code", "") in _SILENT
