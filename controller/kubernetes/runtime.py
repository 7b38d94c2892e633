"""Runs engines as pods of a cluster: one Deployment and one Service for each server, which `controller.kubernetes.workload_writer` applies.

Pods are followed by informers, and `engines` reads these copies.

Invariant: only a leader writes. Every controller sees the same engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from controller.kubernetes import pod_probe, pods, workload
from controller.kubernetes.declared_objects import DeclaredObjects
from controller.kubernetes.informer import Informer, uid_of
from controller.kubernetes.model_objects import ModelObjects
from controller.kubernetes.nodes import Nodes
from controller.kubernetes.pod_index import PodIndex, server_of
from controller.kubernetes.pod_liveness import PodLiveness
from controller.kubernetes.pod_template import ROUTED_GATE, PodSettings
from controller.kubernetes.workload_writer import WorkloadWriter
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
        self._leads = leads
        self._clock = clock
        self._on_change: Callable[[str], None] = lambda _: None
        self._liveness = PodLiveness(
            self._ready_pods, self._assessed, self._end_stuck, settings.engine_stall_seconds, report, clock
        )
        self._nodes = Nodes(api, report)
        self._ready_since: dict[str, float] = {}
        self._index = PodIndex()
        chosen = workload.label_selector(workload.COMPONENT)
        namespaces = settings.allowed_namespaces
        self._pods = [
            Informer(api, f"/api/v1/namespaces/{name}/pods", self._pod_changed, report, chosen) for name in namespaces
        ]
        self._workloads = WorkloadWriter(
            api, namespaces, PodSettings.of(settings), lambda server_uuid: self._on_change(server_uuid), report
        )

    @property
    def decides(self) -> bool:
        """Whether this controller decides when servers sleep: only the leader does."""
        return self._leads()

    async def open(self, on_change: Callable[[str], None], on_model_change: Callable[[str], None]) -> None:
        """Read all Deployments and pods, and follow them."""
        self._on_change = on_change
        self._models.open(on_model_change)
        self._models.start()
        self._nodes.start()
        for informer in self._pods:
            informer.start()
        await self._workloads.open()
        for informer in self._pods:
            await informer.synced.wait()
        self._liveness.start()

    async def close(self) -> None:
        """Stop following. The pods keep running."""
        await self._liveness.close()
        await asyncio.gather(self._workloads.close(), *(informer.close() for informer in self._pods))
        await self._nodes.close()
        await self._models.close()

    async def stop_all(self, grace: float) -> None:
        """Do nothing: the engines of a cluster outlive its controllers."""

    def memory(self) -> MachineMemory:
        """Return the memory of the node that has the most for pods."""
        return self._nodes.memory()

    def nodes(self) -> Mapping[str, int]:
        """Return the bytes of memory for pods of each node by its name; none if they are not known yet."""
        return self._nodes.each()

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
        return self._index.servers()

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """Return the engines of a server's pods. Those that go or come, the oldest first, are replicas from 0 on; those that leave follow.

        A pod that has ended, for instance because its node was short of memory, is none: the Deployment has replaced it, and the cluster
        keeps it for people to look at.
        """
        item = self._store.object(server_uuid)
        owner = None if item is None else workload.owner_of(item)
        own = [
            pod
            for pod in self._index.of_server(server_uuid)
            if pods.phase_of(pod) is not EnginePhase.ENDED and (owner is None or owner.has(pod))
        ]
        own.sort(key=lambda pod: pods.phase_of(pod) is EnginePhase.STOPPING)
        return [
            pods.engine(pod, number, self._ready_since.get(uid_of(pod)), self._liveness.assessment(uid_of(pod)))
            for number, pod in enumerate(own)
        ]

    async def scale(self, spec: LaunchSpec, replicas: int, memory_bytes: int) -> None:
        """Apply what a server needs, if it is not as it should be."""
        item = self._store.object(spec.server_uuid)
        if item is not None and self._leads():
            await self._workloads.apply(workload.owner_of(item), spec, replicas, memory_bytes)

    def obstacle(self, server_uuid: str) -> str:
        """Return why the cluster does not take what the server needs; empty if it does."""
        return self._workloads.obstacle(server_uuid)

    def begin_to_lead(self) -> None:
        """Apply everything again: another controller may have written since."""
        self._workloads.apply_again()

    async def admit(self, instance: str) -> None:
        """Set the readiness gate of a pod."""
        pod = self._index.with_uid(instance)
        if pod is None or not self._leads():
            return
        metadata = pod["metadata"]
        status = {"conditions": [{"type": ROUTED_GATE, "status": "True", "reason": "Acknowledged"}]}
        patch = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
            "status": status,
        }
        try:
            await self._api.apply(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status", patch)
            self._workloads.clear(server_of(pod))
        except ClusterError as error:
            # If the pod has gone, there is nothing to admit.
            if error.status != 404 and not error.is_conflict:
                self._workloads.obstruct(server_of(pod), error)

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
        pod = self._index.with_uid(engine.instance) if engine else None
        if pod is None:
            return
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/log"
        query = {"container": "engine", "tailLines": str(tail), **({"follow": "true"} if follow else {})}
        async for lines in self._api.lines(path, query):
            yield lines

    def drop_logs(self, server_uuid: str) -> None:
        """Do nothing: logs go with their pods."""

    def _ready_pods(self) -> Iterator[tuple[str, str, str]]:
        for pod in self._index:
            if pods.phase_of(pod) is EnginePhase.READY:
                yield uid_of(pod), pod["metadata"]["name"], pods.address(pod)

    def _assessed(self, uid: str) -> None:
        if pod := self._index.with_uid(uid):
            self._on_change(server_of(pod))

    async def _end_stuck(self, uid: str) -> None:
        """Delete a pod whose engine hangs; the Deployment makes another one."""
        pod = self._index.with_uid(uid)
        if pod is not None and self._leads():
            metadata = pod["metadata"]
            await self._api.delete(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", uid=uid)

    def _address(self, instance: str) -> str:
        pod = self._index.with_uid(instance)
        return pods.address(pod) if pod and pods.phase_of(pod) is EnginePhase.READY else ""

    def _pod_changed(self, pod: Object) -> None:
        uid = uid_of(pod)
        present = any(uid in informer.objects for informer in self._pods)
        (self._index.put if present else self._index.drop)(pod)
        if present and pods.phase_of(pod) is EnginePhase.READY:
            self._ready_since.setdefault(uid, self._clock())
        else:
            self._ready_since.pop(uid, None)
        self._on_change(server_of(pod))
