"""The place of a mesh in a cluster: declared servers as ModelServe objects, engines as pods, and one leader that writes."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc

from controller.kubernetes.acceptance import Acceptance
from controller.kubernetes.declared_objects import DeclaredObjects
from controller.kubernetes.events import Events
from controller.kubernetes.leadership import Leadership
from controller.kubernetes.model_objects import ModelObjects
from controller.kubernetes.runtime import KubernetesRuntime
from controller.kubernetes.status_writer import StatusWriter
from controller.status_cache import StatusCache
from llamesh.background import BackgroundTask
from llamesh.kit.config import Settings
from llamesh.kit.errors import StartRefused
from llamesh.kit.kubernetes_api import KubernetesApi, NoClusterError, configuration
from llamesh.kit.logs import report_failure

MANAGER = "llamesh-controller"
LEASE = "llamesh-controller"


class ClusterPlace:
    """Store and runtime of a cluster, and what belongs to them."""

    def __init__(
        self, api: KubernetesApi, settings: Settings, download: grpc.aio.Channel, contract: grpc.aio.Channel
    ) -> None:
        namespaces = settings.allowed_namespaces
        self._identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        self._led = asyncio.Event()
        self._changed: Callable[[str], None] = lambda _: None
        self._leadership = Leadership(
            api, settings.lease_namespace, LEASE, self._identity, report_failure, self._led.set
        )
        self.store = DeclaredObjects(api, namespaces, report_failure)
        self.runtime = KubernetesRuntime(
            api,
            self.store,
            ModelObjects(download, report_failure),
            settings,
            report_failure,
            lambda: self._leadership.leads,
        )
        self._api = api
        self._acceptance = Acceptance(api, self.store, contract, lambda: self._leadership.leads)
        self._writer: StatusWriter | None = None
        self._leading = BackgroundTask("begin to lead", self._begin_to_lead, report_failure)

    async def open(self, changed: Callable[[str], None]) -> None:
        """Read the declared servers and follow them. `changed(server_uuid)` is called on every change."""
        self._changed = changed
        await self.store.open(self._object_changed)

    def start(self, statuses: StatusCache) -> None:
        """Stand for election, and judge objects and write statuses while leading."""
        events = Events(self._api, self._identity)
        self._writer = StatusWriter(
            self._api, self.store, statuses, events, lambda: self._leadership.leads, report_failure
        )
        self._acceptance.start()
        self._writer.start()
        self._leadership.start()
        self._leading.start()

    def check(self) -> None:
        """Do nothing: a controller that has lost the lease goes on observing."""

    async def close(self) -> None:
        """Stop, and let another controller lead at once."""
        await self._leading.close()
        await self._acceptance.close()
        if self._writer is not None:
            await self._writer.close()
        await self._leadership.close()
        await self.store.close()

    def _object_changed(self, server_uuid: str) -> None:
        self._acceptance.changed(server_uuid)
        self._changed(server_uuid)

    async def _begin_to_lead(self) -> None:
        """Look at everything again once this controller leads: what it saw before, it could not write."""
        await self._led.wait()
        if self._leadership.leads and self._writer is not None:
            self.runtime.begin_to_lead()
            for declared in await self.store.all():
                self._object_changed(declared.server_uuid)
            self._writer.write_all()
        self._led.clear()


async def open_cluster(
    stack: AsyncExitStack, settings: Settings, download: grpc.aio.Channel, contract: grpc.aio.Channel
) -> ClusterPlace:
    """Connect to the cluster; the stack closes the connections. Raises StartRefused if none is configured, or no store of models."""
    if not settings.minio_endpoint:
        raise StartRefused(
            "LLAMESH_RUNTIME is kubernetes and MINIO_ENDPOINT is not set: pods fetch models from an S3 store, because they do not see the"
            " folder of this machine; set MINIO_ENDPOINT and its keys for all members"
        )
    try:
        await configuration()
    except NoClusterError as error:
        raise StartRefused(str(error)) from error
    api = KubernetesApi(MANAGER)
    stack.push_async_callback(api.close)
    cluster = ClusterPlace(api, settings, download, contract)
    stack.push_async_callback(cluster.runtime.close)
    stack.push_async_callback(cluster.close)
    return cluster
