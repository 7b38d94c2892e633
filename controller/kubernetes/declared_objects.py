"""The store of declared servers on Kubernetes: ModelServe objects, which kubectl and other controllers change too.

A change for a caller is a patch that names the version that was read: if the object has changed meanwhile, it is read and decided again.
Invariant: an object that cannot be read, or whose id is not known, changes nothing; objects are followed by informers and never cached
beside them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from controller.declared import Declaration, DeclaredServer, EngineMemory, RunState, check_repeated, not_found
from controller.declared_store import DeclaredStore
from controller.kubernetes import modelserve
from controller.kubernetes.informer import Informer, uid_of
from llamesh.background import Report
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.kit.spec_changes import apply_changes, check_etag
from llamesh.names import default_namespace
from llamesh.v1.server_pb2 import ServerChanges

_MAX_TRIES = 5
"""Maximum number of tries of a change whose object is changed by others in between."""


class DeclaredObjects(DeclaredStore):
    """ModelServe objects of some namespaces."""

    def __init__(
        self,
        api: KubernetesApi,
        namespaces: Sequence[str],
        report: Report,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        """`report` is called with each failure to follow the objects, and with each object that cannot be read."""
        self._api = api
        self._report = report
        self._new_id = new_id
        self._on_change: Callable[[str], None] = lambda _: None
        self._known: dict[str, DeclaredServer] = {}
        self._unwritten: dict[str, RunState] = {}
        self._decided = asyncio.Event()
        self._informers = {
            namespace: Informer(api, modelserve.path(namespace), self._changed, report) for namespace in namespaces
        }

    async def open(self, on_change: Callable[[str], None]) -> None:
        """Read all objects and follow them. `on_change(server_uuid)` is called for each that has come, changed or gone."""
        self._on_change = on_change
        for informer in self._informers.values():
            informer.start()
        await self.refresh()

    async def close(self) -> None:
        """Stop following."""
        await asyncio.gather(*(informer.close() for informer in self._informers.values()))

    def object(self, server_uuid: str) -> Object | None:
        """Return the object of a server; None if there is none. It must not be modified."""
        for informer in self._informers.values():
            if found := informer.objects.get(server_uuid):
                return found
        return None

    def take(self, found: Object) -> None:
        """Take an object that a call has returned, because its event comes later."""
        self._informers[found["metadata"]["namespace"]].take(found)

    async def refresh(self) -> None:
        """Wait until all objects have been read. Afterwards watches keep them current."""
        for informer in self._informers.values():
            await informer.synced.wait()

    async def catch_up(self) -> None:
        """See DeclaredStore. Watches lag behind, also behind what another controller has just created."""
        await self.refresh()
        try:
            for informer in self._informers.values():
                await informer.catch_up()
        except ClusterError as error:
            raise MeshError(
                Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
                f"the cluster's API does not list the servers: {error}",
                {"component": "kubernetes"},
            ) from error

    async def declare(self, wanted: Declaration) -> DeclaredServer:
        """See DeclaredStore. The estimate is not stored: the contract service is asked about every generation of an object."""
        manifest = modelserve.manifest(wanted, self._new_id())
        namespace, name = (
            wanted.spec.namespace or default_namespace(tuple(self._informers)),
            manifest["metadata"]["name"],
        )
        try:
            found = await self._api.create(modelserve.path(namespace), manifest)
        except ClusterError as error:
            if not error.is_conflict:
                raise _failure(error) from error
            first = await self._api.get(modelserve.path(namespace, name))
            if first is None:
                raise _failure(error) from error
            found = first
        self.take(found)
        return check_repeated(modelserve.declared(found), wanted.request_digest)

    async def change(self, server_uuid: str, changes: ServerChanges, etag: str, memory: EngineMemory) -> DeclaredServer:
        """See DeclaredStore."""
        for _ in range(_MAX_TRIES):
            present = await self.get(server_uuid)
            if present.removing:
                raise not_found(server_uuid)
            check_etag(present.etag, etag)
            spec = apply_changes(present.spec, changes)
            if spec == present.spec:
                return present
            patch = modelserve.merge_patch(modelserve.spec_json(present.spec), modelserve.spec_json(spec))
            if found := await self._patch(server_uuid, {"spec": patch}):
                return modelserve.declared(found)
        raise MeshError(
            Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
            f"the object of the server {server_uuid} is changed by others all the time; try again",
            {"component": "controller"},
        )

    async def set_run_state(self, server_uuid: str, run_state: RunState) -> bool:
        """See DeclaredStore."""
        self._unwritten.pop(server_uuid, None)
        return await self._write_run_state(server_uuid, run_state)

    def decide_run_state(self, server_uuid: str, run_state: RunState, only_from: RunState | None = None) -> bool:
        """See DeclaredStore."""
        present = self._known.get(server_uuid)
        if present is None or present.run_state is run_state or only_from not in (None, present.run_state):
            return False
        self._unwritten[server_uuid] = run_state
        self._known[server_uuid] = replace(present, run_state=run_state)
        self._decided.set()
        return True

    async def write_decided(self) -> None:
        """See DeclaredStore."""
        await self._decided.wait()
        failure: Exception | None = None
        for server_uuid, run_state in list(self._unwritten.items()):
            try:
                await self._write_run_state(server_uuid, run_state)
            except (MeshError, modelserve.UnreadableError) as error:
                # One object that the cluster refuses must not keep the others from being written.
                failure = error
                continue
            if self._unwritten.get(server_uuid) is run_state:
                del self._unwritten[server_uuid]
        if failure is not None:
            raise failure
        if not self._unwritten:
            self._decided.clear()

    async def begin_removal(self, server_uuid: str, etag: str = "") -> None:
        """See DeclaredStore. The object stays until its Deployment and its pods have gone, so that their end can be waited for."""
        present = await self.get(server_uuid)
        check_etag(present.etag, etag)
        item = self.object(server_uuid)
        if item is None:
            raise not_found(server_uuid)
        metadata = item["metadata"]
        try:
            await self._api.delete(
                modelserve.path(metadata["namespace"], metadata["name"]), uid=server_uuid, foreground=True
            )
        except ClusterError as error:
            raise _failure(error) from error

    async def forget(self, server_uuid: str) -> None:
        """Do nothing: the cluster removes the object once all that belongs to it has gone."""

    async def _present(self) -> Mapping[str, DeclaredServer]:
        return self._known

    async def _write_run_state(self, server_uuid: str, run_state: RunState) -> bool:
        """Write a run state into the object. Returns False if it is there already, or the object has gone."""
        item = self.object(server_uuid)
        if item is None or modelserve.declared(item).run_state is run_state:
            return False
        value = None if run_state is RunState.AWAKE else str(run_state)
        found = await self._patch(
            server_uuid, {"metadata": {"annotations": {modelserve.RUN_STATE: value}}}, any_version=True
        )
        return found is not None

    async def _patch(self, server_uuid: str, patch: Object, *, any_version: bool = False) -> Object | None:
        """Patch an object if it is still as it was read. Returns None if it has changed; SERVER_NOT_FOUND if it has gone."""
        item = self.object(server_uuid)
        if item is None:
            raise not_found(server_uuid)
        metadata = item["metadata"]
        conditions = {"uid": server_uuid, **({} if any_version else {"resourceVersion": metadata["resourceVersion"]})}
        written = {**patch, "metadata": {**patch.get("metadata", {}), **conditions}}
        place = modelserve.path(metadata["namespace"], metadata["name"])
        try:
            found = await self._api.merge(place, written)
        except ClusterError as error:
            if error.status == 404:
                raise not_found(server_uuid) from error
            if not error.is_conflict:
                raise _failure(error) from error
            if fresh := await self._api.get(place):
                self.take(fresh)
            return None
        self.take(found)
        return found

    def _changed(self, item: Object) -> None:
        """Take the new state of an object, or its end."""
        uid = uid_of(item)
        if self.object(uid) is None:
            self._known.pop(uid, None)
            self._unwritten.pop(uid, None)
        else:
            try:
                found = modelserve.declared(item)
            except modelserve.UnreadableError as error:
                name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                self._report(f"read the ModelServe {name}", error)
                return
            if (run_state := self._unwritten.get(uid)) is not None:
                found = replace(found, run_state=run_state)
            self._known[uid] = found
        self._on_change(uid)


def _failure(error: ClusterError) -> MeshError:
    """Return the error for a caller whose change the cluster has not taken."""
    if error.may_pass:
        return MeshError(
            Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
            f"the cluster's API does not take the change: {error}",
            {"component": "kubernetes"},
        )
    return MeshError(Reason.ERROR_REASON_INVALID_FIELD, f"the cluster refuses the object: {error}")
