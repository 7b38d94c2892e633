"""Chooses the transfers that begin next. No I/O.

Invariant: the transfers of one user never have all slots, so slow downloads of one user do not stop those of others. A free slot goes to
the user who has the fewest, and among the transfers of equal users to the one that was requested first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from services.download.tables import TransferRow

MAX_RUNNING = 4
"""Maximum number of transfers that run at the same time; more would only share the same network and disk."""
MAX_OF_USER = MAX_RUNNING - 1
"""Maximum number of transfers of one user that run at the same time."""


def next_transfers(waiting: Sequence[TransferRow], running: Iterable[str], free: int) -> list[TransferRow]:
    """Return the transfers that get the `free` slots.

    Args:
        waiting: the transfers that may begin, by time of request.
        running: the user of each running transfer; transfers whose user is unknown count as those of one user.
        free: number of slots without a transfer.
    """
    of_user = Counter(running)
    left, chosen = list(waiting), list[TransferRow]()
    while len(chosen) < free:
        allowed = [row for row in left if of_user[row.requested_by] < MAX_OF_USER]
        if not allowed:
            break
        # min returns the first of equal rows, which was requested first.
        row = min(allowed, key=lambda row: of_user[row.requested_by])
        left.remove(row)
        chosen.append(row)
        of_user[row.requested_by] += 1
    return chosen
