"""A model that comes in parts, and what its transfer has left."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from llamesh.kit.database import Database
from tests.contract.download.journal import HEADER, counted, until
from tests.contract.ranged_source import large_model

if TYPE_CHECKING:
    from tests.contract.download.conftest import Service

PART = 1 << 20
PARALLEL = 3
PARTS = 20

SIZE = PARTS * PART
DATA = large_model(SIZE - PART // 2, seed=3)
DIGEST = hashlib.sha256(DATA).hexdigest()
NEVER = 10**9
"""Number of sent bytes that the source does not reach."""
AGAIN = PARALLEL * PART + HEADER
"""Most bytes that one kill costs."""


async def nothing_left(service: Service, journal: Database) -> None:
    """Wait until neither the journal nor the store has anything of a transfer."""

    async def none() -> bool:
        return await counted(journal) == (0, 0) and not service.stored

    await until(none)
