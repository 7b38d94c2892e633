"""Slows down guessing of passwords: after some failures in a row a name must wait, each time longer.

It never locks anyone out for good, and its memory is bounded, whatever names strangers send.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llamesh.kit.errors import MeshError, Reason

FREE_FAILURES = 5
"""Failures in a row that cost nothing: people mistype."""

FIRST_PAUSE = 1.0
"""Seconds to wait after the first failure too many; doubled by each further one."""

LONGEST_PAUSE = 60.0
"""Seconds to wait at most."""

REMEMBERED_NAMES = 10_000
"""Names remembered; the one tried longest ago is forgotten first."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    free_at: float = 0.0


class Throttle:
    """Counts failures by name. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def check(self, name: str) -> None:
        """Let an attempt begin.

        Raises:
            MeshError: TOO_MANY_LOGINS while the name must wait.
        """
        record = self._records.get(name)
        left = record.free_at - self._clock() if record else 0.0
        if left > 0:
            seconds = math.ceil(left)
            raise MeshError(
                Reason.ERROR_REASON_TOO_MANY_LOGINS,
                f"too many failed logins for this user; try again in {seconds} s",
                {"retryAfterSeconds": seconds},
                retry_after=left,
            )

    def failed(self, name: str) -> None:
        """Count an attempt whose password was wrong."""
        record = self._records.setdefault(name, _Record())
        self._records.move_to_end(name)
        if len(self._records) > REMEMBERED_NAMES:
            self._records.popitem(last=False)
        record.failures += 1
        if record.failures >= FREE_FAILURES:
            pause = FIRST_PAUSE * 2.0 ** min(record.failures - FREE_FAILURES, 32)
            record.free_at = self._clock() + min(pause, LONGEST_PAUSE)

    def succeeded(self, name: str) -> None:
        """Forget the failures of a name whose password was right."""
        self._records.pop(name, None)
