"""The store of declared servers, as the parts of the controller use it: rows of a table on one machine, ModelServe objects on Kubernetes.

All reads are served from memory, so servers keep running while the database or the cluster's API is unavailable.

Invariant: a caller's declaration is stored before the call returns. A decision of the controller itself (asleep when idle, awake for a
request) takes effect at once and is written as soon as possible; until then it stays in effect when the store is read again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime

from controller.declared import Declaration, DeclaredServer, EngineMemory, RunState, check_repeated, not_found
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.runtime_parameters import needed_models
from llamesh.v1.server_pb2 import ServerChanges


class DeclaredStore(ABC):
    """See the module. All methods belong to one event loop."""

    async def requested(
        self, owner: str, request_id: str, request_digest: str, owner_uid: str = ""
    ) -> DeclaredServer | None:
        """Return the server that an earlier request declared; None if there is none. Raises REQUEST_ID_REUSED as `declare` does."""
        wanted = (owner_uid or owner, request_id)
        found = (each for each in (await self._present()).values() if (each.requester, each.request_id) == wanted)
        first = next(found, None)
        return check_repeated(first, request_digest) if first is not None else None

    async def get(self, server_uuid: str) -> DeclaredServer:
        """Return one server. Raises SERVER_NOT_FOUND."""
        found = await self.find(server_uuid)
        if found is None:
            raise not_found(server_uuid)
        return found

    async def find(self, server_uuid: str) -> DeclaredServer | None:
        """Return one server; None if there is none."""
        return (await self._present()).get(server_uuid)

    async def all(self) -> Sequence[DeclaredServer]:
        """Return all servers, oldest first."""
        return sorted((await self._present()).values(), key=_order_key)

    async def page(self, query: PageQuery, model_uuid: str = "") -> tuple[Sequence[DeclaredServer], str]:
        """Return one page, ordered by creation time and id, and the token of the next page."""
        page = query.of(Listing(f"servers model={model_uuid}", BY_TIME))
        found = [each for each in await self.all() if not model_uuid or model_uuid in needed_models(each.spec)]
        return page.cut([each for each in found if page.after is None or _order_key(each) > page.after], _order_key)

    @abstractmethod
    async def refresh(self) -> None:
        """Read everything again."""

    async def catch_up(self) -> None:
        """Make sure that the cache has everything that was written before this call, by whichever process."""
        await self.refresh()

    @abstractmethod
    async def declare(self, wanted: Declaration) -> DeclaredServer:
        """Declare a server. If the requester repeats a request id, return the server that the first request declared.

        Raises REQUEST_ID_REUSED if the first request had another digest.
        """

    @abstractmethod
    async def change(self, server_uuid: str, changes: ServerChanges, etag: str, memory: EngineMemory) -> DeclaredServer:
        """Change the fields that are set. Raises SERVER_NOT_FOUND, and ETAG_MISMATCH if the server has changed since it was read.

        `memory`: the new estimate; zeros if it stays. A change to the present values does not raise the generation.
        """

    @abstractmethod
    async def set_run_state(self, server_uuid: str, run_state: RunState) -> bool:
        """Set the run state for a caller: it is written before it takes effect. Returns False if it was set already."""

    @abstractmethod
    def decide_run_state(self, server_uuid: str, run_state: RunState, only_from: RunState | None = None) -> bool:
        """Set the run state for the controller itself: it takes effect at once, and `write_decided` writes it.

        Returns False if it was set already, if the present state is not `only_from`, or if the server is unknown.
        """

    @abstractmethod
    async def write_decided(self) -> None:
        """Wait for decisions of the controller and write them. A decision that cannot be written is kept for the next call."""

    @abstractmethod
    async def begin_removal(self, server_uuid: str, etag: str = "") -> None:
        """Mark a server as being removed. Raises SERVER_NOT_FOUND, and ETAG_MISMATCH if the server has changed since it was read."""

    @abstractmethod
    async def forget(self, server_uuid: str) -> None:
        """Delete a removed server whose engines have ended."""

    @abstractmethod
    async def _present(self) -> Mapping[str, DeclaredServer]:
        """Return the cached servers by id."""


def _order_key(declared: DeclaredServer) -> tuple[datetime, str]:
    return declared.create_time, declared.server_uuid
