"""How long a mesh has not answered the watches of a client: who is told of it, and after which time a watch gives up."""

from __future__ import annotations

import math
from collections.abc import Callable


class Silence:
    """A mesh that does not answer. A client has one, for all its watches; without a bound they reconnect for ever."""

    def __init__(self) -> None:
        self.max_seconds = math.inf
        """Seconds without an answer after which a watch raises the error of its last try."""
        self.told: Callable[[float], None] | None = None
        """Called after each try without an answer, with the seconds for which there was none, and with 0 at the next answer."""
        self.seconds = 0.0
        """Seconds for which the mesh had not answered at the last try; 0 if it answered."""

    def lasts(self, seconds: float) -> None:
        """Note that the mesh has not answered for some seconds."""
        self.seconds = seconds
        if self.told:
            self.told(seconds)

    def ends(self) -> None:
        """Note that the mesh answers."""
        if self.seconds:
            self.lasts(0.0)
