"""For what queued transfers wait that may begin otherwise: for another one of their source, for a slot, or for a suspect.

The worker finds it in each pass. It is in memory only, because each process finds it by itself; watchers are told what changes of it.
"""

from __future__ import annotations

from collections.abc import Collection

from services.download.transfer_run import TransferRuns


class WaitNotices:
    """The words for people, by model."""

    def __init__(self, runs: TransferRuns) -> None:
        self._runs = runs
        self._words: dict[str, str] = {}

    def words(self, model_uuid: str) -> str:
        """Return for what a transfer waits; "" if it waits for nothing of these."""
        return self._words.get(model_uuid, "")

    def clear(self) -> None:
        """Forget all words: another reason to wait is told instead."""
        self._words.clear()

    async def show(self, words: dict[str, str], running: Collection[str]) -> None:
        """Show for what transfers wait, and tell the watchers what has changed of it, except of those that run."""
        if words == (before := self._words):
            return
        # Before the rows are read: what a call tells meanwhile is not told again.
        self._words = words
        changed = {uuid for uuid in before.keys() | words.keys() if before.get(uuid) != words.get(uuid)}
        try:
            await self._runs.broadcast_waits(changed - set(running), words)
        except BaseException:
            self._words = before
            raise
