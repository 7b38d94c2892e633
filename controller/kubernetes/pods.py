"""Reads a pod as an engine: its phase, its address, and why it does not serve, in words. No I/O.

Invariant: what the cluster says about a pod that waits or has failed becomes one reason and one sentence; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.kubernetes.modelserve import SERVER_LABEL
from controller.kubernetes.pod_liveness import ALIVE
from controller.kubernetes.pod_template import PORT, ROUTED_GATE, SPEC_LABEL
from controller.runtimes import Engine, EnginePhase
from controller.runtimes.liveness import Assessment
from llamesh.kit.kubernetes_api import Object

_WORDS = {
    "ErrImagePull": "the image of the engine cannot be pulled",
    "ImagePullBackOff": "the image of the engine cannot be pulled",
    "InvalidImageName": "the name of the engine's image is not valid",
    "ErrImageNeverPull": "the image of the engine is not on the node",
    "CreateContainerConfigError": "the container of the engine cannot be configured",
    "CreateContainerError": "the container of the engine cannot be made",
    "RunContainerError": "the container of the engine cannot be run",
    "CrashLoopBackOff": "the engine ends again and again; the pauses between its starts grow",
}
"""Reasons of a container that waits, with what they mean. Others are shown as the cluster names them."""
_EXPECTED = {"ContainerCreating", "PodInitializing"}
"""Reasons of a container that will start soon."""
_OUT_OF_MEMORY = "OOMKilled"
_MAX_MESSAGE = 600


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pod does not serve although it should."""

    reason: str
    """In CamelCase."""
    message: str


def engine(pod: Object, replica: int, ready_since: float | None, assessment: Assessment = ALIVE) -> Engine:
    """Return the engine of a pod that has not ended. `ready_since`: monotonic time since which its containers are ready, if they are."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels: Mapping[str, str] = metadata.get("labels") or {}
    phase = phase_of(pod)
    trouble = problem(pod) if phase is EnginePhase.STARTING else None
    return Engine(
        instance=metadata["uid"],
        server_uuid=labels.get(SERVER_LABEL, ""),
        replica=replica,
        spec_hash=labels.get(SPEC_LABEL, ""),
        phase=phase,
        address=address(pod),
        process=metadata["name"],
        start_time=datetime.fromisoformat(metadata["creationTimestamp"]),
        ready_since=ready_since,
        admitted=is_admitted(pod),
        restarts=sum(each.get("restartCount", 0) for each in _containers(status)),
        problem=trouble.message if trouble else "",
        problem_reason=trouble.reason if trouble else "",
        liveness=assessment.liveness,
        liveness_message=assessment.message,
    )


def phase_of(pod: Object) -> EnginePhase:
    """Return the phase of a pod's engine. Ready: its containers are, whatever its readiness gate says."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return EnginePhase.ENDED
    if "deletionTimestamp" in pod["metadata"]:
        return EnginePhase.STOPPING
    ready = _condition(status, "ContainersReady").get("status") == "True" and status.get("podIP")
    return EnginePhase.READY if ready else EnginePhase.STARTING


def is_admitted(pod: Object) -> bool:
    """Return whether the readiness gate of a pod is set."""
    return bool(_condition(pod.get("status") or {}, ROUTED_GATE).get("status") == "True")


def problem(pod: Object) -> Problem | None:
    """Return why a pod does not serve; None if nothing speaks against its start."""
    status = pod.get("status") or {}
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return Problem(
            scheduled.get("reason") or "Unschedulable", _short(f"no node takes it: {scheduled.get('message', '')}")
        )
    for container in _containers(status):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        last = (container.get("lastState") or {}).get("terminated") or {}
        reason = waiting.get("reason", "")
        # The container that fetched the model has ended well.
        if ended.get("exitCode"):
            return _ended(ended)
        if reason == "CrashLoopBackOff" and last:
            return _ended(last)
        if reason and reason not in _EXPECTED:
            words = _WORDS.get(reason, "the container of the engine waits")
            detail = waiting.get("message", "")
            return Problem(reason, _short(f"{words}: {detail}" if detail else words))
    return None


def _ended(terminated: Mapping[str, Any]) -> Problem:
    if terminated.get("reason") == _OUT_OF_MEMORY:
        words = "the engine was killed because it took more memory than its limit; serve fewer slots, a smaller context or a smaller model"
        return Problem("OutOfMemory", words)
    said = [line for line in str(terminated.get("message") or "").splitlines() if line.strip()]
    code = terminated.get("exitCode", 0)
    return Problem("EngineExited", _short(said[-1] if said else f"the engine ended with exit code {code}"))


def _containers(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((each for each in status.get("conditions") or [] if each["type"] == kind), {})


def address(pod: Object) -> str:
    """Return the address of a pod's engine, host:port. Without an IP yet the host is empty."""
    ip = (pod.get("status") or {}).get("podIP", "")
    return f"[{ip}]:{PORT}" if ":" in ip else f"{ip}:{PORT}"


def _short(words: str) -> str:
    return words if len(words) <= _MAX_MESSAGE else f"{words[: _MAX_MESSAGE - 3]}..."
