"""Deletes models that no server uses. Invariant: a model that a server uses is not deleted.

Servers and models are in different stores, so no transaction spans both. Both sides write first and read the other side afterwards:

- A deletion marks the model, then asks the controller for the servers that use it, then deletes the model, if the mark is still there, or
  takes the mark away.
- A declaration writes the server, then reads the model (`read`), and withdraws the server if there is none
  (`services.gateway.declarations`; on Kubernetes also `controller.kubernetes.acceptance`, which reads the model of each object that it
  knows).

If the reader finds no mark, the server was written before the mark was, and the deletion sees the server. A reader or another deletion that
finds a mark waits for the end of the deletion. The mark of a process that died expires after MARK_SECONDS. A reader takes an expired mark
away before it goes on, and a deletion replaces it, so a deletion that was only slow does not find it again and starts anew: correctness
does not depend on clocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from sqlalchemy import or_, select, update

from llamesh.kit.channels import asking, call_options
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.leases import moment
from llamesh.v1 import controller_pb2, controller_pb2_grpc
from services.download.aliases import remove_aliases
from services.download.catalogue import Catalogue, absent
from services.download.model_search import set_tags
from services.download.tables import ModelRow, TransferRow
from services.download.unowned_objects import UnownedObjects, lock_bytes

MARK_SECONDS = 30.0
"""Seconds after which the mark of a deletion expires: longer than the controller may take to answer."""
DECISION_SECONDS = 5.0
"""Seconds for which a reader or another deletion waits for the end of a deletion."""
MAX_ROUNDS = 5
"""Maximum number of times that a deletion begins anew, because its mark was lost or the model has changed."""
_POLL_SECONDS = 0.05
_ASK_SECONDS = 5.0
"""Deadline in seconds of the question for the servers of a model; the caller's deadline is longer."""
REMOVAL_SECONDS = 3.0
"""Seconds for which a deletion waits for the store to remove the objects of the model; the sweep removes what is left."""
MAX_NAMED_SERVERS = 10
"""Maximum number of servers that the refusal of a deletion names."""

Servers = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the ids of servers that use a model, at most MAX_NAMED_SERVERS."""


class _Marked(NamedTuple):
    mark: str
    expired: bool


class Deletions:
    """Deletes models of the catalogue, and reads models for callers that are about to use them."""

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        objects: UnownedObjects,
        servers: Servers,
        new_mark: Callable[[], str],
    ) -> None:
        """`new_mark` returns another text of at most 32 characters with each call."""
        self._database = database
        self._catalogue = catalogue
        self._objects = objects
        self._servers = servers
        self._new_mark = new_mark

    async def read(self, model_uuid: str) -> ModelRow:
        """Return a model that is not being deleted, after the end of a deletion that has begun.

        Raises the errors of `Catalogue.get`, and COMPONENT_UNAVAILABLE if a deletion does not end within DECISION_SECONDS.
        """
        for _ in range(int(DECISION_SECONDS / _POLL_SECONDS)):
            # The row is read in the same statement as its mark: a mark that is set afterwards finds what the caller has written before.
            model = await self._catalogue.get(model_uuid)
            if not model.deletion:
                return model
            if (marked := await self._marked(model_uuid)) is not None and marked.expired:
                await self._unmark(model_uuid, marked.mark)
            else:
                await asyncio.sleep(_POLL_SECONDS)
        raise _undecided(model_uuid)

    async def delete(self, model_uuid: str) -> ModelRow:
        """Delete a model and its transfer, then each of its objects if no other model shares it.

        Raises MODEL_IN_USE with the servers that use it, COMPONENT_UNAVAILABLE if the controller does not answer or another deletion of the
        model does not end within DECISION_SECONDS, and the errors of `Catalogue.get`.
        """
        mark = self._new_mark()
        try:
            model = await self._decide(model_uuid, mark)
        except BaseException:
            # A mark that cannot be taken away expires.
            with suppress(MeshError):
                await self._unmark(model_uuid, mark)
            raise
        # The model is deleted: a store that does not answer must not make the call fail.
        with suppress(TimeoutError):
            async with asyncio.timeout(REMOVAL_SECONDS):
                for file in model.files:
                    await self._objects.try_remove(file.object_key)
        return model

    async def _decide(self, model_uuid: str, mark: str) -> ModelRow:
        """Mark a model, ask for its servers, and delete its rows. Begins anew if the mark was lost or the model has changed meanwhile."""
        rounds = 0
        for _ in range(int(DECISION_SECONDS / _POLL_SECONDS)):
            known = await self._catalogue.get(model_uuid)
            if not await self._mark(model_uuid, mark):
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if used_by := await self._servers(model_uuid):
                raise _in_use(model_uuid, used_by)
            if (model := await self._delete(known, mark)) is not None:
                return model
            rounds += 1
            if rounds == MAX_ROUNDS:
                break
        raise _undecided(model_uuid)

    async def _delete(self, known: ModelRow, mark: str) -> ModelRow | None:
        """Delete the rows of a model. Return None if it has changed since it was read, or the mark is not there any more."""
        async with self._database.begin() as session:
            await lock_bytes(self._database, session, known.digests)
            transfer = await session.get(TransferRow, known.model_uuid, with_for_update=True)
            model = await session.get(ModelRow, known.model_uuid, with_for_update=True)
            if model is None:
                raise absent(known.model_uuid, transfer)
            if model.deletion != mark or model.digests != known.digests:
                return None  # the model has other bytes than those that were locked, or the mark has expired
            await session.delete(model)
            await set_tags(session, model.model_uuid, ())
            await remove_aliases(session, model.model_uuid)
            if transfer is not None:
                await session.delete(transfer)
            await session.flush()
            for file in model.files:
                await self._objects.disown(session, file.object_key)
        return model

    async def _mark(self, model_uuid: str, mark: str) -> bool:
        """Mark a model. Return False without effect if it has the mark of another deletion that has not expired, or is gone."""
        free = or_(ModelRow.deletion.in_(("", mark)), ModelRow.deletion_expires < moment(self._database))
        marked = (
            update(ModelRow)
            .where(ModelRow.model_uuid == model_uuid, free)
            .values(deletion=mark, deletion_expires=moment(self._database, MARK_SECONDS))
            .returning(ModelRow.model_uuid)
        )
        async with self._database.begin() as session:
            found = await session.scalar(marked, execution_options={"synchronize_session": False})
        return found is not None

    async def _unmark(self, model_uuid: str, mark: str) -> None:
        async with self._database.begin() as session:
            await session.execute(
                update(ModelRow)
                .where(ModelRow.model_uuid == model_uuid, ModelRow.deletion == mark)
                .values(deletion="", deletion_expires=None),
                execution_options={"synchronize_session": False},
            )

    async def _marked(self, model_uuid: str) -> _Marked | None:
        expired = ModelRow.deletion_expires < moment(self._database)
        query = select(ModelRow.deletion, expired).where(ModelRow.model_uuid == model_uuid, ModelRow.deletion != "")
        async with self._database.read() as session:
            row = (await session.execute(query)).first()
        return _Marked(*row) if row is not None else None


def servers_of(controller: controller_pb2_grpc.ControllerServiceAsyncStub) -> Servers:
    """Return the question to the controller for the servers that use a model."""

    async def servers(model_uuid: str) -> Sequence[str]:
        request = controller_pb2.ListDeclaredServersRequest(model_uuid=model_uuid, page_size=MAX_NAMED_SERVERS)
        with asking("controller"):
            found = await controller.ListDeclaredServers(request, **call_options(_ASK_SECONDS))
        return [server.server_uuid for server in found.servers]

    return servers


def _undecided(model_uuid: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        f"the deletion of the model {model_uuid} has not ended: try again in {MARK_SECONDS:.0f} seconds",
        {"component": "download", "modelUuid": model_uuid},
    )


def _in_use(model_uuid: str, servers: Sequence[str]) -> MeshError:
    names = ",".join(servers)
    return MeshError(
        Reason.ERROR_REASON_MODEL_IN_USE,
        f"model {model_uuid!r} is used by {names}",
        {"modelUuid": model_uuid, "servers": names},
    )
