"""Comparisons of a model that is there with what its source has now. Nothing is fetched and nothing is changed.

They have no slots of transfers, so calls for the same model share one comparison, and few run at the same time.
"""

from __future__ import annotations

import asyncio

from llamesh.kit.errors import MeshError
from services.download.catalogue import Catalogue
from services.download.fetches import Fetches
from services.download.present_objects import source_version
from services.download.retry_backoffs import TransferAttempt, attempt_of
from services.download.sources import Source, SourceError, SourceObject
from services.download.tables import ModelFileRow, TransferRow, TransferState

COMPARE_SECONDS = 3.0
"""Seconds for which a comparison may delay a call."""
MAX_COMPARISONS = 8
"""Maximum number of comparisons at the same time. Another one waits, within its seconds."""


class SourceComparison:
    """Compares models with their sources."""

    def __init__(self, catalogue: Catalogue, fetches: Fetches, source: Source) -> None:
        self._catalogue = catalogue
        self._fetches = fetches
        self._source = source
        self._slots = asyncio.Semaphore(MAX_COMPARISONS)
        self._running: dict[TransferAttempt, asyncio.Future[bool]] = {}

    async def has_changed(self, row: TransferRow) -> bool:
        """Return whether the source of a transfer that has succeeded has other files now than its model.

        False too if the source does not answer in time, or does not say what its bytes are.
        """
        if row.state != TransferState.SUCCEEDED:
            return False
        attempt = attempt_of(row)
        if attempt in self._running:
            # Shielded: the end of this call is not the end of the comparison.
            return await asyncio.shield(self._running[attempt])
        result = self._running[attempt] = asyncio.get_running_loop().create_future()
        changed = False
        try:
            async with asyncio.timeout(COMPARE_SECONDS), self._slots:
                changed = await self._differs(row)
        except (SourceError, MeshError, TimeoutError):
            pass
        finally:
            del self._running[attempt]
            result.set_result(changed)
        return changed

    async def _differs(self, row: TransferRow) -> bool:
        model = await self._catalogue.get(row.model_uuid)
        files = await self._fetches.files(row)
        if len(files) != len(model.files):
            return True
        for known, file in zip(model.files, files, strict=True):
            async with self._source.open(file.address) as found:
                if is_other(known, file.address, found):
                    return True
        return False


def is_other(known: ModelFileRow, address: str, found: SourceObject) -> bool:
    """Return whether an open file is known to have other bytes than a file of a model."""
    if found.sha256:
        return found.sha256 != known.sha256
    if found.size not in (None, known.size_bytes):
        return True
    version = source_version(address, found)
    return "" not in (version, known.source_version) and version != known.source_version
