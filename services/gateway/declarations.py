"""Writes servers at the controller, and reads their models once more afterwards.

The check has read the models before, and one may have been deleted since. A deletion marks the model first and asks for the servers that
use it afterwards (`services.download.deletions`). So if the models are still there after the server was written, each deletion that is not
decided yet sees the server. Invariant: no caller is told of a server whose model was deleted before the server was written.

If this process dies between the two, nobody was told of the server. It stays declared, and is FAILING if its model was deleted in between.
A repetition of the request reads the models again. Another call with the same request id may have told its caller of the server, so the
server of such a request is removed only if a model is gone, not if the models cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from llamesh.kit.channels import asking, call_options
from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError, Reason
from llamesh.runtime_parameters import needed_models
from llamesh.v1 import controller_pb2, download_pb2, server_pb2
from services.gateway.members import Members

READ_SECONDS = 8.0
"""Deadline in seconds of reading a model, longer than the download service may wait for the end of a deletion."""
_GONE = (Reason.ERROR_REASON_MODEL_NOT_FOUND, Reason.ERROR_REASON_MODEL_NOT_READY)
"""How the catalogue says that it has no model of an id; the second, if the id is fetched anew."""


class Declarations:
    """Declares and changes servers at the controller; `stop_deadline` is the time in seconds in which it removes one."""

    def __init__(self, members: Members, stop_deadline: float) -> None:
        self._controller = members.controller
        self._catalogue = members.catalogue
        self._stop_deadline = stop_deadline

    async def declare(self, declaration: controller_pb2.DeclareServerRequest) -> server_pb2.Server:
        """Declare a server, to the end also if the caller goes away. Raises MODEL_NOT_FOUND and the errors of the controller.

        If the models cannot be read, the server is removed again; one with a request id only if a model is gone.
        """
        return await to_completion(self._declare(declaration))

    async def repeat(self, first: server_pb2.Server) -> server_pb2.Server:
        """Return the server that an earlier request declared; if one of its models is gone, remove the server and raise MODEL_NOT_FOUND."""
        try:
            await self._read(needed_models(first.spec))
        except MeshError as error:
            if error.reason in _GONE:
                await self._remove(first.server_uuid)
                raise
        return first

    async def change(
        self, present: server_pb2.Server, update: controller_pb2.UpdateDeclaredServerRequest
    ) -> server_pb2.Server:
        """Change a server. If a model that only the change names cannot be read, the change is undone and MODEL_NOT_FOUND raised.

        The estimate of the memory stays that of the change until the next one.
        """
        return await to_completion(self._change(present, update))

    async def _declare(self, declaration: controller_pb2.DeclareServerRequest) -> server_pb2.Server:
        with asking("controller"):
            declared = await self._controller.DeclareServer(declaration, **call_options())
        try:
            await self._read(needed_models(declared.spec))
        except MeshError as error:
            if error.reason in _GONE or not declaration.request_id:
                await self._remove(declared.server_uuid)
            raise
        return declared

    async def _change(
        self, present: server_pb2.Server, update: controller_pb2.UpdateDeclaredServerRequest
    ) -> server_pb2.Server:
        with asking("controller"):
            changed = await self._controller.UpdateDeclaredServer(update, **call_options())
        try:
            await self._read(set(needed_models(changed.spec)) - set(needed_models(present.spec)))
        except MeshError:
            undo = controller_pb2.UpdateDeclaredServerRequest(
                server_uuid=changed.server_uuid, changes=undoing(present.spec, update.changes), etag=changed.etag
            )
            with suppress(MeshError), asking("controller"):
                await self._controller.UpdateDeclaredServer(undo, **call_options())
            raise
        return changed

    async def _read(self, model_uuids: Iterable[str]) -> None:
        """Read models; MODEL_NOT_FOUND, MODEL_NOT_READY, or COMPONENT_UNAVAILABLE."""
        for model_uuid in model_uuids:
            request = download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid)
            with asking("download"):
                await self._catalogue.GetCatalogueModel(request, **call_options(READ_SECONDS))

    async def _remove(self, server_uuid: str) -> None:
        request = controller_pb2.RemoveServerRequest(server_uuid=server_uuid)
        # The reason for which it is removed says more than a failure to remove it.
        with suppress(MeshError), asking("controller"):
            await self._controller.RemoveServer(request, **call_options(self._stop_deadline))


def undoing(spec: server_pb2.ServerSpec, changes: server_pb2.ServerChanges) -> server_pb2.ServerChanges:
    """Return the changes that give each field that `changes` sets the value that it has in `spec`."""
    back = server_pb2.ServerChanges()
    for field, _ in changes.ListFields():
        if field.name == "runtime_params":
            continue  # A spec has the parameters that they mean.
        if field.message_type is None:
            setattr(back, field.name, getattr(spec, field.name))
        else:
            part = getattr(back, field.name)
            part.SetInParent()
            part.CopyFrom(getattr(spec, field.name))
    return back
