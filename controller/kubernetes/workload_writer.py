"""Applies the Deployment, the Service and the disruption budget of each server, and follows the Deployments.

They are applied again if they differ from what was applied last, or if the Deployment has not the generation that was applied: somebody may
have changed it. What the cluster does not take becomes the obstacle of the server, and is tried again.

Invariant: the caller decides who writes; everyone follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controller.kubernetes import workload
from controller.kubernetes.informer import Informer, uid_of
from controller.kubernetes.pod_index import server_of
from controller.kubernetes.pod_template import PodSettings
from controller.kubernetes.workload import WorkloadOwner
from controller.runtimes import LaunchSpec
from llamesh.background import Report
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.kit.logs import log

RETRY_SECONDS = 5.0
"""Seconds after which a write that the cluster did not take is tried again."""
MIN_PROTECTED_REPLICAS = 2
"""Minimum number of replicas of a server that has a disruption budget."""


class WorkloadWriter:
    """The workloads of some namespaces."""

    def __init__(
        self,
        api: KubernetesApi,
        namespaces: Sequence[str],
        pod: PodSettings,
        on_change: Callable[[str], None],
        report: Report,
    ) -> None:
        """`on_change(server_uuid)` is called on every change of a Deployment, and when a write is to be tried again."""
        self._api = api
        self._pod = pod
        self._on_change = on_change
        self._deployment_of: dict[str, Object] = {}
        self._applied: dict[str, tuple[Object, int]] = {}
        """What was applied last, and the generation that the Deployment had then."""
        self._obstacles: dict[str, str] = {}
        chosen = workload.label_selector(workload.COMPONENT)
        self._informers = {
            name: Informer(api, f"/apis/apps/v1/namespaces/{name}/deployments", self._changed, report, chosen)
            for name in namespaces
        }

    async def open(self) -> None:
        """Read all Deployments, and follow them."""
        for informer in self._informers.values():
            informer.start()
        await asyncio.gather(*(informer.synced.wait() for informer in self._informers.values()))

    async def close(self) -> None:
        """Stop following."""
        await asyncio.gather(*(informer.close() for informer in self._informers.values()))

    async def apply(self, owner: WorkloadOwner, spec: LaunchSpec, replicas: int, memory_bytes: int) -> None:
        """Apply what a server needs, if it is not as it should be."""
        wanted = workload.deployment(owner, spec, replicas, self._pod, memory_bytes)
        if self._applied.get(owner.uid) == (wanted, self._generation(owner.uid)):
            return
        try:
            found = await self._api.apply(
                f"/apis/apps/v1/namespaces/{owner.namespace}/deployments/{owner.workload}", wanted
            )
            await self._api.apply(
                f"/api/v1/namespaces/{owner.namespace}/services/{owner.workload}", workload.service(owner)
            )
            await self._protect(owner, replicas)
        except ClusterError as error:
            self.obstruct(owner.uid, error)
            return
        self.clear(owner.uid)
        self._informers[owner.namespace].take(found)
        self._applied[owner.uid] = wanted, found["metadata"]["generation"]

    async def _protect(self, owner: WorkloadOwner, replicas: int) -> None:
        """Apply the disruption budget of a server, or remove it."""
        path = f"/apis/policy/v1/namespaces/{owner.namespace}/poddisruptionbudgets/{owner.workload}"
        if replicas >= MIN_PROTECTED_REPLICAS:
            await self._api.apply(path, workload.disruption_budget(owner))
        elif found := await self._api.get(path):
            await self._api.delete(path, uid=uid_of(found))

    def apply_again(self) -> None:
        """Let everything be applied again: another controller may have written since."""
        self._applied.clear()

    def obstacle(self, server_uuid: str) -> str:
        """Return why the cluster does not take what a server needs, or makes no pods of it; empty if it does."""
        found = self._deployment_of.get(server_uuid)
        return self._obstacles.get(server_uuid) or (workload.why_no_pods(found) if found is not None else "")

    def obstruct(self, server_uuid: str, error: ClusterError) -> None:
        """Note that the cluster did not take a write, and look at the server again later."""
        self._obstacles[server_uuid] = str(error)
        log.warning(
            "the cluster does not take what a server needs", server=server_uuid, status=error.status, words=str(error)
        )
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._on_change, server_uuid)

    def clear(self, server_uuid: str) -> None:
        """Note that the cluster has taken a write."""
        self._obstacles.pop(server_uuid, None)

    def _generation(self, server_uuid: str) -> int:
        """Return the generation of a server's Deployment, which anybody's change of it raises; 0 if there is none."""
        found = self._deployment_of.get(server_uuid)
        return int(found["metadata"]["generation"]) if found is not None else 0

    def _changed(self, item: Object) -> None:
        server_uuid = server_of(item)
        if any(uid_of(item) in informer.objects for informer in self._informers.values()):
            self._deployment_of[server_uuid] = item
        elif self._deployment_of.get(server_uuid, item)["metadata"]["uid"] == uid_of(item):
            self._deployment_of.pop(server_uuid, None)
            self._applied.pop(server_uuid, None)
            self._obstacles.pop(server_uuid, None)
        self._on_change(server_uuid)
