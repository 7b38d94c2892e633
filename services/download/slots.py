"""Chooses the transfers that begin next. No I/O.

Of the transfers of one source one runs at a time, in all processes together, as far as it fetches no file that the others do not want. Once
it has succeeded, the store has the bytes, and the next one fetches nothing (`present_objects`); if it ends otherwise, the next one fetches
them itself.

Files of this machine have slots of their own: they need no network, so downloads that stand still do not stop them.

Invariant: the transfers of one user never have all slots of a kind, so slow downloads of one user do not stop those of others. A free slot
goes to the user who has the fewest, and among the transfers of equal users to the one that was requested first. At one source another user
comes before the one whose transfer has begun there last, so transfers of one user that fail one after the other stop nobody. A transfer
waits for another one of its source only if that one fetches no file that this one does not want, and makes progress (`source_holds`), or is
of the same user and waits for its next try after a failure: never for one that waits for a slot or for room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.download.tables import NO_FILE, TransferRow, TransferState

MAX_RUNNING = 4
"""Maximum number of transfers from other machines that run at the same time; more would only share the same network and disk."""
MAX_OF_USER = MAX_RUNNING - 1
"""Maximum number of transfers of one user from other machines that run at the same time."""
MAX_LOCAL = 3
"""Maximum number of transfers of files of this machine that run at the same time, beside those from other machines."""
MAX_LOCAL_OF_USER = MAX_LOCAL - 1
"""Maximum number of transfers of one user of files of this machine that run at the same time."""


class Slots(NamedTuple):
    """The slots of one kind of transfers, and how many of them one user may have."""

    total: int
    of_user: int


NETWORK, LOCAL = Slots(MAX_RUNNING, MAX_OF_USER), Slots(MAX_LOCAL, MAX_LOCAL_OF_USER)


def slots_of(row: TransferRow) -> Slots:
    """Return the slots that a transfer takes one of. A local file does not wait for servers that send nothing."""
    if not _is_file(row.source):
        return NETWORK
    others = (row.projector, *(address for _, address in row.adapters))
    return LOCAL if all(address in ("", NO_FILE) or _is_file(address) for address in others) else NETWORK


def _is_file(address: str) -> bool:
    return address.startswith("file:")


def begin_next(
    waiting: Sequence[TransferRow], running: Sequence[TransferRow], last_turn: Callable[[TransferRow], int]
) -> list[TransferRow]:
    """Return the waiting transfers that get the free slots of their kinds, beside those that run (see `next_transfers`)."""
    chosen = []
    for slots in (NETWORK, LOCAL):
        users = [row.requested_by for row in running if slots_of(row) is slots]
        mine = [row for row in waiting if slots_of(row) is slots]
        chosen += next_transfers(mine, users, slots.total - len(users), last_turn, slots.of_user)
    return chosen


def wait_words(
    waiting: Iterable[TransferRow], running: Sequence[TransferRow], held: Mapping[str, str]
) -> dict[str, str]:
    """Return for what waiting transfers wait, for people, by model. `held`: see `holders`."""
    words = {row.model_uuid: slot_words(row, running) for row in waiting} | {
        model_uuid: f"waits for the download of {holder}, which fetches the same source"
        for model_uuid, holder in held.items()
    }
    return {model_uuid: each for model_uuid, each in words.items() if each}


def slot_words(row: TransferRow, running: Sequence[TransferRow]) -> str:
    """Return for which slot a transfer waits, for people; "" if a slot is free."""
    slots = slots_of(row)
    users = [other.requested_by for other in running if slots_of(other) is slots]
    what = "imports of files" if slots is LOCAL else "downloads"
    if users.count(row.requested_by) >= slots.of_user:
        return f"waits for its turn: at most {slots.of_user} {what} of one user run at the same time"
    return f"waits for its turn: at most {slots.total} {what} run at the same time" if len(users) >= slots.total else ""


class SourceTurns:
    """The order in which users have begun transfers of each source. In memory only: after a restart nobody has had a turn."""

    def __init__(self) -> None:
        self._count = 0
        self._last: dict[str, dict[str, int]] = {}

    def begin(self, row: TransferRow) -> None:
        """Note that a transfer begins."""
        self._count += 1
        self._last.setdefault(row.source, {})[row.requested_by] = self._count

    def last(self, row: TransferRow) -> int:
        """Return the number of the last turn of a transfer's user at its source; 0 for none. Later turns have larger numbers."""
        return self._last.get(row.source, {}).get(row.requested_by, 0)

    def keep(self, sources: Collection[str]) -> None:
        """Forget the turns at all sources but these."""
        self._last = {source: last for source, last in self._last.items() if source in sources}


def next_transfers(
    waiting: Sequence[TransferRow],
    running: Iterable[str],
    free: int,
    last_turn: Callable[[TransferRow], int],
    most_of_user: int = MAX_OF_USER,
) -> list[TransferRow]:
    """Return the transfers that get the `free` slots, none of which holds another one of them.

    Args:
        waiting: the transfers that may begin (see `holders`), by time of request.
        running: the user of each running transfer; transfers whose user is unknown count as those of one user.
        free: number of slots without a transfer.
        last_turn: the last turn of the user at the source of a transfer (see `SourceTurns`).
        most_of_user: maximum number of running transfers of one user.
    """
    of_user = Counter(running)
    left, chosen = list(waiting), list[TransferRow]()
    while len(chosen) < free:
        allowed = [row for row in left if of_user[row.requested_by] < most_of_user]
        if not allowed:
            break
        first_turn: dict[str, int] = {}
        for row in allowed:
            first_turn[row.source] = min(first_turn.get(row.source, last_turn(row)), last_turn(row))
        # min returns the first of equal rows, which was requested first.
        row = min(
            (row for row in allowed if last_turn(row) == first_turn[row.source]),
            key=lambda row: of_user[row.requested_by],
        )
        left = [other for other in left if other is not row and not _holds(row, other)]
        chosen.append(row)
        of_user[row.requested_by] += 1
    return chosen


def holders(
    waiting: Iterable[TransferRow],
    running: Iterable[TransferRow],
    tried: Iterable[TransferRow],
    elsewhere: Iterable[TransferRow] = (),
) -> dict[str, str]:
    """Return the models whose transfers must wait for another one of their source, each with the model of that one.

    Args:
        waiting: the transfers that may begin otherwise.
        running: the transfers that run and make progress.
        tried: those that have failed and wait for their next try, which the source or the store delays. They hold those of their user only.
        elsewhere: the transfers of other processes that run and make progress, or have failed and wait for their next try (`claims`).
    """
    of_source: dict[str, list[TransferRow]] = {}
    of_user: dict[tuple[str, str], list[TransferRow]] = {}
    elsewhere = list(elsewhere)
    for other in (*running, *(row for row in elsewhere if row.state != TransferState.QUEUED)):
        of_source.setdefault(other.source, []).append(other)
    for other in (*tried, *(row for row in elsewhere if row.state == TransferState.QUEUED)):
        of_user.setdefault((other.source, other.requested_by), []).append(other)
    found: dict[str, str] = {}
    for row in waiting:
        others = (*of_source.get(row.source, ()), *of_user.get((row.source, row.requested_by), ()))
        if holder := next((other for other in others if _holds(other, row)), None):
            found[row.model_uuid] = holder.model_uuid
    return found


def _holds(other: TransferRow, row: TransferRow) -> bool:
    """Return whether a transfer brings only bytes that another one wants, which can wait for them.

    An address with a query may have a signature that expires. A file that the user of one chose beside those of the source may be slow as
    its server likes, and the bytes of a model are recorded when all its files are there.
    """
    projector = other.projector in ("", NO_FILE, row.projector)
    adapters = {address for _, address in other.adapters} <= {NO_FILE, *(address for _, address in row.adapters)}
    return other.source == row.source and "?" not in row.source and projector and adapters
