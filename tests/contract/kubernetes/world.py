"""A controller in a cluster, with all its parts, against STAND-INS: of the cluster, of Envoy, of the contract and the download service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from controller.demand import Demand
from controller.kubernetes.cluster import ClusterPlace
from controller.reconcile import Reconciler
from controller.servicer import ControllerServicer
from controller.status_cache import StatusCache
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.kubernetes_api import KubernetesApi
from llamesh.kit.occupancy import Counters
from llamesh.v1.contract_pb2 import CheckResponse, Refusal
from llamesh.v1.contract_pb2_grpc import ContractServiceServicer, add_ContractServiceServicer_to_server
from llamesh.v1.controller_pb2_grpc import ControllerServiceStub, add_ControllerServiceServicer_to_server
from llamesh.v1.download_pb2_grpc import add_CatalogueServiceServicer_to_server
from llamesh.v1.server_pb2 import MemoryEstimate
from tests.contract.fake_runtime import Catalogue, FakeEnvoy
from tests.contract.patience import PATIENCE, until
from tests.kubernetes_cluster import Object, StandIn

QUIET_SECONDS = 0.5
SERVERS = "/apis/llamesh.dev/v1alpha1/namespaces/default/modelserves"


class Engines:
    """FAKE: what engines in pods answer to probes."""

    def __init__(self) -> None:
        self.answers: dict[str, Counters | None] = {}

    async def counters(self, address: str) -> Counters | None:
        """Return the answer of an engine; None: it is silent."""
        return self.answers.get(address, Counters(0, 0.0, None))


class FakeContract(ContractServiceServicer):
    """FAKE: allows what is not refused."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.error: MeshError | None = None
        self.asked: list[Any] = []

    async def CheckDeclaredServer(self, request: Any, context: Any) -> CheckResponse:
        self.asked.append(request)
        if self.error:
            raise self.error
        memory = MemoryEstimate(weights_bytes=100 << 20, kv_cache_bytes=20 << 20, overhead_bytes=8 << 20, replicas=1)
        if self.refusal:
            return CheckResponse(allowed=False, refusals=[self.refusal], memory=memory)
        return CheckResponse(allowed=True, memory=memory, model_name="smol")


class InCluster:
    """One controller and what it sees."""

    def __init__(
        self, cluster: StandIn, place: ClusterPlace, envoy: FakeEnvoy, statuses: StatusCache, stub: Any
    ) -> None:
        self.cluster, self.place, self.envoy, self.statuses, self.stub = cluster, place, envoy, statuses, stub

    def apply(self, name: str = "chat", **spec: Any) -> Object:
        """Do what `kubectl apply` does."""
        path = f"{SERVERS}/{name}"
        before = self.cluster.objects.get(path, {})
        item = {
            "metadata": {"name": name, **before.get("metadata", {})},
            "spec": {"modelUuid": "m1", "replicas": 1, **spec},
        }
        if "status" in before:
            item["status"] = before["status"]
        return self.cluster.put(path, item)

    def object(self, name: str = "chat") -> Object:
        """Return a ModelServe object."""
        return self.cluster.objects[f"{SERVERS}/{name}"]

    def condition(self, kind: str, name: str = "chat") -> Object:
        """Return a condition of an object; empty if it has none."""
        found = self.object(name).get("status", {}).get("conditions", [])
        return next((each for each in found if each["type"] == kind), {})

    def pods(self) -> list[Object]:
        """Return the pods."""
        return self.cluster.of("pods")

    def deployment(self) -> Object | None:
        """Return the only Deployment; None if there is none."""
        return next(iter(self.cluster.of("deployments")), None)

    async def ready(self, name: str = "chat", pods: int = 1) -> None:
        """Let the only Deployment have its pods, all of which answer, and wait until the server is ready."""
        await until(lambda: (found := self.deployment()) and found["spec"]["replicas"] == pods)
        self.cluster.settle()
        self.answers()
        await until(lambda: self.condition("Ready", name).get("status") == "True")

    def endpoints(self, name: str = "chat") -> tuple[str, ...]:
        """Return the addresses that Envoy has for an object."""
        found = self.envoy.intent._servers.get(self.object(name)["metadata"]["uid"])
        return found.ready if found else ()

    def answers(self, ip: str = "10.0.0.1") -> None:
        """Let every pod that starts answer."""
        for pod in self.pods():
            if pod["status"]["phase"] == "Pending":
                self.cluster.set_pod(pod["metadata"]["name"], ip=ip)


@contextlib.asynccontextmanager
async def in_cluster(
    cluster: StandIn, settings: Settings, connect: Any, start_member: Any, member: str = "controller"
) -> AsyncIterator[InCluster]:
    """Run a controller in the cluster; its services run already."""
    api, statuses, envoy = KubernetesApi("llamesh-controller"), StatusCache(), FakeEnvoy()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(api.close)
        place = ClusterPlace(api, settings, connect(settings, "download"), connect(settings, "contract"))
        stack.push_async_callback(place.runtime.close)
        stack.push_async_callback(place.close)
        reconciler = Reconciler(settings, place.store, place.runtime, envoy, statuses, Demand())
        await place.open(reconciler.changed)
        await reconciler.open()
        stack.push_async_callback(reconciler.close)
        place.start(statuses)

        def register(running: Any) -> None:
            servicer = ControllerServicer(settings, place.store, reconciler, statuses, place.runtime, envoy)
            add_ControllerServiceServicer_to_server(servicer, running.server)

        await start_member(settings, member, register)
        yield InCluster(cluster, place, envoy, statuses, ControllerServiceStub(connect(settings, member)))


async def start_services(settings: Settings, start_member: Any, file: Path) -> FakeContract:
    """Start the stand-ins of the services that a controller asks."""
    contract = FakeContract()
    file.touch()
    await start_member(
        settings, "download", lambda member: add_CatalogueServiceServicer_to_server(Catalogue(file), member.server)
    )
    await start_member(
        settings, "contract", lambda member: add_ContractServiceServicer_to_server(contract, member.server)
    )
    return contract


def outage() -> MeshError:
    """Return the error of a service that does not answer."""
    return MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "away", {"component": "database"})


async def quiet(cluster: StandIn) -> None:
    """Wait until nothing is written any more: nothing changes, so no write may cause another."""

    def written() -> int:
        return sum(call[0] != "GET" and "/leases" not in call[1] for call in cluster.calls)

    async with asyncio.timeout(PATIENCE):
        before = -1
        while before != (now := written()):
            before = now
            await asyncio.sleep(QUIET_SECONDS)
