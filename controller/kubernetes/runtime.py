"""Runs engines as pods of a cluster: one Deployment and one Service for each server.

Deployments and pods are followed by informers, and `engines` reads these copies. The manifests of a server are applied again if they differ
from what was applied last, or if the Deployment has not the number of pods that was applied: somebody may have changed it.

Invariant: only a leader writes. Every controller sees the same engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Literal

from controller.kubernetes import modelserve, pod_probe, pods, workload
from controller.kubernetes.declared_objects import DeclaredObjects
from controller.kubernetes.informer import Informer, uid_of
from controller.kubernetes.model_objects import ModelObjects
from controller.kubernetes.nodes import Nodes
from controller.kubernetes.pod_liveness import PodLiveness
from controller.kubernetes.pod_template import ROUTED_GATE, PodSettings
from controller.model_files import ModelFile
from controller.runtimes import Engine, EngineLoad, EnginePhase, LaunchSpec
from controller.runtimes.probe import UnreachableError
from llamesh.background import Report
from llamesh.kit.config import Settings
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.kit.machine_memory import MachineMemory

_START_LIMIT = 1 << 20
"""Starts are not limited here: the scheduler and the kubelets decide."""


class KubernetesRuntime:
    """Runtime of the engines of a cluster. All methods belong to one event loop."""

    scales: Literal[True] = True

    def __init__(
        self,
        api: KubernetesApi,
        store: DeclaredObjects,
        models: ModelObjects,
        settings: Settings,
        report: Report,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leads` says whether this controller may write."""
        self._api = api
        self._store = store
        self._models = models
        self._pod = PodSettings.of(settings)
        self._leads = leads
        self._clock = clock
        self._on_change: Callable[[str], None] = lambda _: None
        self._liveness = PodLiveness(
            self._ready_pods, self._assessed, self._end_stuck, settings.engine_stall_seconds, report, clock
        )
        self._nodes = Nodes(api, report)
        self._ready_since: dict[str, float] = {}
        self._pods_of: dict[str, dict[str, Object]] = {}
        self._applied: dict[str, tuple[Object, Object]] = {}
        chosen = workload.label_selector(workload.COMPONENT)
        namespaces = settings.allowed_namespaces
        self._pods = [
            Informer(api, f"/api/v1/namespaces/{name}/pods", self._pod_changed, report, chosen) for name in namespaces
        ]
        self._deployments = [
            Informer(api, f"/apis/apps/v1/namespaces/{name}/deployments", self._deployment_changed, report, chosen)
            for name in namespaces
        ]

    async def open(self, on_change: Callable[[str], None], on_model_change: Callable[[str], None]) -> None:
        """Read all Deployments and pods, and follow them."""
        self._on_change = on_change
        self._models.open(on_model_change)
        self._models.start()
        self._nodes.start()
        for informer in (*self._pods, *self._deployments):
            informer.start()
        for informer in (*self._pods, *self._deployments):
            await informer.synced.wait()
        self._liveness.start()

    async def close(self) -> None:
        """Stop following. The pods keep running."""
        await self._liveness.close()
        await asyncio.gather(*(informer.close() for informer in (*self._pods, *self._deployments)))
        await self._nodes.close()
        await self._models.close()

    async def stop_all(self, grace: float) -> None:
        """Do nothing: the engines of a cluster outlive its controllers."""

    def memory(self) -> MachineMemory:
        """Return the memory of the node that has the most for pods."""
        return self._nodes.memory()

    def start_limit(self) -> int:
        """Return a number that limits nothing."""
        return _START_LIMIT

    def model(self, model_uuid: str) -> ModelFile:
        """Return the cached entry of a model's file."""
        return self._models.get(model_uuid)

    def locate(self, model_uuid: str) -> None:
        """Request a model's file from the download service."""
        self._models.locate(model_uuid)

    def servers(self) -> Collection[str]:
        """Return every server that has a pod."""
        return self._pods_of.keys()

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """Return the engines of a server's pods, oldest first. Their order gives the replicas their numbers."""
        found = sorted(self._pods_of.get(server_uuid, {}).values(), key=_age)
        return [
            pods.engine(pod, number, self._ready_since.get(uid_of(pod)), self._liveness.assessment(uid_of(pod)))
            for number, pod in enumerate(found)
        ]

    async def scale(self, spec: LaunchSpec, replicas: int, memory_bytes: int) -> None:
        """Apply the Deployment and the Service of a server, if they are not as they should be."""
        item = self._store.object(spec.server_uuid)
        if item is None or not self._leads():
            return
        metadata = item["metadata"]
        place = workload.WorkloadOwner(metadata["namespace"], metadata["name"], metadata["uid"])
        wanted = (
            workload.deployment(place, spec, replicas, self._pod, memory_bytes),
            workload.service(place),
        )
        if self._applied.get(spec.server_uuid) == wanted and self._has(spec.server_uuid, replicas):
            return
        deployment, service = wanted
        found = await self._api.apply(
            f"/apis/apps/v1/namespaces/{place.namespace}/deployments/{place.workload}", deployment
        )
        await self._api.apply(f"/api/v1/namespaces/{place.namespace}/services/{place.workload}", service)
        for informer in self._deployments:
            if f"/{place.namespace}/" in informer.path:
                informer.take(found)
        self._applied[spec.server_uuid] = wanted

    async def admit(self, instance: str) -> None:
        """Set the readiness gate of a pod."""
        pod = self._found(instance)
        if pod is None or not self._leads():
            return
        metadata = pod["metadata"]
        status = {"conditions": [{"type": ROUTED_GATE, "status": "True", "reason": "Acknowledged"}]}
        patch = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": instance, "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "status": status,
        }
        try:
            await self._api.apply(f"/api/v1/namespaces/{metadata['namespace']}/pods/{instance}/status", patch)
        except ClusterError as error:
            # The pod has gone: there is nothing to admit.
            if error.status != 404 and not error.is_conflict:
                raise

    def end_server(self, server_uuid: str, grace: float) -> None:
        """Do nothing: the cluster removes what belonged to an object that has gone."""

    def forget(self, instance: str) -> None:
        """Do nothing: the Deployment replaces a pod that has ended, and the cluster removes it."""

    async def load(self, instance: str) -> EngineLoad | None:
        """Return the load of an engine; None if it does not answer.

        llama.cpp's own counters say whether it works. Connections of clients cannot be counted from outside the pod, so a request that is
        still being tokenized is not seen; the engine's own drain, inside the pod, counts them.
        """
        address = self._address(instance)
        with suppress(UnreachableError):
            if address and (found := await pod_probe.counters(address)) is not None:
                return EngineLoad(found.requests > 0, found.work)
        return None

    async def metrics(self, instance: str) -> bytes | None:
        """Return llama.cpp's metrics of an engine in Prometheus' text format; None if it does not answer."""
        address = self._address(instance)
        return await pod_probe.metrics(address) if address else None

    async def read_log(
        self, server_uuid: str, replica: int, tail: int, *, follow: bool
    ) -> AsyncIterator[Sequence[str]]:
        """Yield the last lines of a replica's log and, with `follow`, new lines as they come."""
        engine = next((each for each in self.engines(server_uuid) if each.replica == replica), None)
        pod = self._found(engine.instance) if engine else None
        if pod is None:
            return
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/log"
        query = {"container": "engine", "tailLines": str(tail), **({"follow": "true"} if follow else {})}
        async for lines in self._api.lines(path, query):
            yield lines

    def drop_logs(self, server_uuid: str) -> None:
        """Do nothing: logs go with their pods."""

    def _ready_pods(self) -> Iterator[tuple[str, str, str]]:
        for found in self._pods_of.values():
            for uid, pod in found.items():
                if pods.phase_of(pod) is EnginePhase.READY:
                    yield uid, pod["metadata"]["name"], pods.engine(pod, 0, None).address

    def _assessed(self, uid: str) -> None:
        for server_uuid, found in self._pods_of.items():
            if uid in found:
                self._on_change(server_uuid)

    async def _end_stuck(self, uid: str) -> None:
        """Delete a pod whose engine hangs; the Deployment makes another one."""
        pod = next((found[uid] for found in self._pods_of.values() if uid in found), None)
        if pod is not None and self._leads():
            metadata = pod["metadata"]
            await self._api.delete(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", uid=uid)

    def _has(self, server_uuid: str, replicas: int) -> bool:
        """Return whether the Deployment of a server is there and has this number of replicas."""
        found = [
            item
            for informer in self._deployments
            for item in informer.objects.values()
            if item["metadata"]["labels"].get(modelserve.SERVER_LABEL) == server_uuid
        ]
        return bool(found) and all(item["spec"].get("replicas") == replicas for item in found)

    def _found(self, instance: str) -> Object | None:
        for found in self._pods_of.values():
            for pod in found.values():
                if pod["metadata"]["name"] == instance:
                    return pod
        return None

    def _address(self, instance: str) -> str:
        pod = self._found(instance)
        return pods.engine(pod, 0, None).address if pod and pods.phase_of(pod) is EnginePhase.READY else ""

    def _pod_changed(self, pod: Object) -> None:
        server_uuid = pod["metadata"]["labels"].get(modelserve.SERVER_LABEL, "")
        uid = uid_of(pod)
        if any(uid in informer.objects for informer in self._pods):
            self._pods_of.setdefault(server_uuid, {})[uid] = pod
            if pods.phase_of(pod) is EnginePhase.READY:
                self._ready_since.setdefault(uid, self._clock())
            else:
                self._ready_since.pop(uid, None)
        else:
            self._ready_since.pop(uid, None)
            known = self._pods_of.get(server_uuid, {})
            known.pop(uid, None)
            if not known:
                self._pods_of.pop(server_uuid, None)
        self._on_change(server_uuid)

    def _deployment_changed(self, item: Object) -> None:
        self._on_change(item["metadata"]["labels"].get(modelserve.SERVER_LABEL, ""))


def _age(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]
