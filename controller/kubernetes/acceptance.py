"""Asks the contract service about every generation of a ModelServe object and writes the answer as the condition Accepted.

Invariant: a spec that the contract service has not accepted reaches no engine. A refusal may pass (a model arrives, memory becomes free),
so it is asked again, with growing pauses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import grpc

from controller.declared import ACCEPTED, DeclaredServer, Verdict
from controller.kubernetes import modelserve
from controller.kubernetes.declared_objects import DeclaredObjects
from controller.work_queue import WorkQueue
from llamesh.enum_words import camel_case
from llamesh.kit.channels import DEADLINE, asking
from llamesh.kit.clock import utc_now
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.v1.contract_pb2 import CheckDeclaredServerRequest, CheckRequest
from llamesh.v1.contract_pb2_grpc import ContractServiceStub
from llamesh.v1.server_pb2 import MemoryEstimate

FIRST_PAUSE = 15.0
"""Seconds before a refused spec is checked again; doubled with each refusal."""
MAX_PAUSE = 600.0
MANAGER = "llamesh-acceptance"
"""Field manager of the condition, apart from that of the rest of the status."""
_OUTAGES = (Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, Reason.ERROR_REASON_DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class _Answer:
    verdict: Verdict
    memory: MemoryEstimate | None = None


@dataclass(frozen=True, slots=True)
class _Refusal:
    generation: int = 0
    times: int = 0
    not_before: float = 0.0
    """Monotonic time of the next question; events before it ask nothing."""


class Acceptance:
    """Judges objects while this controller leads."""

    def __init__(
        self,
        api: KubernetesApi,
        store: DeclaredObjects,
        contract: grpc.aio.Channel,
        leads: Callable[[], bool],
        clock: Callable[[], datetime] = utc_now,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._store = store
        self._contract = ContractServiceStub(contract)
        self._leads = leads
        self._clock = clock
        self._now = now
        self._refusals: dict[str, _Refusal] = {}
        """The last refusal of each server."""
        self._queue = WorkQueue(self._judge, workers=4)

    def start(self) -> None:
        """Start to judge."""
        self._queue.start()

    async def close(self) -> None:
        """Stop judging."""
        await self._queue.close()

    def changed(self, server_uuid: str) -> None:
        """Judge an object soon, unless its present generation is accepted."""
        item = self._store.object(server_uuid)
        if item is None:
            self._refusals.pop(server_uuid, None)
        elif not modelserve.verdict(item).accepted:
            self._queue.add(server_uuid)

    async def _judge(self, server_uuid: str) -> None:
        item, declared = self._store.object(server_uuid), await self._store.find(server_uuid)
        if item is None or declared is None or declared.removing or declared.verdict.accepted or not self._leads():
            return
        refusal = self._refusals.get(server_uuid, _Refusal())
        if refusal.generation != declared.generation:
            # A refusal of an earlier leader counts as the first.
            refusal = (
                _Refusal(declared.generation, 1, self._now() + FIRST_PAUSE) if declared.verdict.known else _Refusal()
            )
        if (left := refusal.not_before - self._now()) > 0:
            self._refusals[server_uuid] = refusal
            self._queue.add_after(server_uuid, left)
            return
        answer = await self._ask(declared, item)
        if answer.verdict != declared.verdict:
            await self._write(item, answer)
        if answer.verdict.accepted:
            self._refusals.pop(server_uuid, None)
            return
        times = refusal.times + 1
        pause = min(FIRST_PAUSE * 2 ** min(times - 1, 16), MAX_PAUSE)
        self._refusals[server_uuid] = _Refusal(declared.generation, times, self._now() + pause)
        self._queue.add_after(server_uuid, pause)

    async def _ask(self, declared: DeclaredServer, item: Object) -> _Answer:
        """Return what the contract service says. Raises MeshError if it does not answer."""
        metadata, spec = item["metadata"], declared.spec
        check = CheckRequest(
            model_uuid=spec.model_uuid,
            replicas=declared.replicas,
            parameters=spec.parameters,
            namespace=spec.namespace,
            replaces_server_uuid=declared.server_uuid,
            placement=spec.placement if spec.HasField("placement") else None,
        )
        # Not the annotation of the owner, which everyone who may change the object may write.
        subject = f"kubernetes:{metadata['namespace']}/{metadata['name']}"
        request = CheckDeclaredServerRequest(check=check, subject=subject)
        try:
            with asking("contract"):
                said = await self._contract.CheckDeclaredServer(request, timeout=DEADLINE)
        except MeshError as error:
            if error.reason in _OUTAGES:
                raise
            return _Answer(Verdict(False, camel_case(name_of(error.reason)), error.message))
        if said.allowed:
            return _Answer(ACCEPTED, said.memory)
        words = "; ".join(refusal.message for refusal in said.refusals)
        return _Answer(Verdict(False, camel_case(said.refusals[0].reason), words), said.memory)

    async def _write(self, item: Object, answer: _Answer) -> None:
        metadata = item["metadata"]
        before = next(
            (
                each
                for each in (item.get("status") or {}).get("conditions") or []
                if each["type"] == modelserve.CONDITION_ACCEPTED
            ),
            None,
        )
        condition = modelserve.accepted_condition(answer.verdict, metadata["generation"], before, self._clock())
        status: Object = {"conditions": [condition]}
        if memory := answer.memory:
            status["engineMemoryBytes"] = memory.weights_bytes + memory.kv_cache_bytes + memory.overhead_bytes
            status["sharedWeightsBytes"] = memory.shared_weights_bytes
        try:
            found = await self._api.apply(
                modelserve.path(metadata["namespace"], metadata["name"], "status"),
                modelserve.status_patch(item, status),
                MANAGER,
            )
        except ClusterError as error:
            if error.status == 404 or error.is_conflict:
                return  # It has gone.
            raise
        self._store.take(found)
