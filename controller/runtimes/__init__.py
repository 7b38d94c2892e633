"""The runtime protocol: starts, stops and lists single engines. `controller.plan` decides which engines should run.

Invariant: after the controller was killed, a runtime finds all its engines again, so callers need not store any state.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from controller.model_files import ModelFile, ModelObject
from llamesh.kit.machine_memory import MachineMemory
from llamesh.v1.server_pb2 import Placement


class EnginePhase(enum.Enum):
    """Phase of an engine's life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    """The engine finishes its running requests."""
    ENDED = "ended"


class Liveness(enum.Enum):
    """Liveness of an engine that was ready."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    """The engine does not answer or makes no progress. It gets no new requests until it does."""
    LOST = "lost"
    """The engine cannot be reached at its address, so it can get no new requests. Running requests may still finish."""
    STUCK = "stuck"
    """The engine hangs and is being killed."""


CANNOT_START = "CannotStart"
"""Exit reason if no process could be started. The cause is the machine, not the engine."""


@dataclass(frozen=True, slots=True)
class EngineExit:
    """The end of an engine."""

    reason: str
    """Reason in CamelCase, for instance "OutOfMemory"."""
    message: str
    """Explanation for people."""
    requested: bool
    """Whether a stop of the engine had been requested, so that the exit is not a failure."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Present state of one engine."""

    instance: str
    """Name of the engine in this runtime, for instance "0f0c6a0e-00"."""
    server_uuid: str
    replica: int
    spec_hash: str
    """Hash of the spec with which it was started; see `LaunchSpec`."""
    phase: EnginePhase
    address: str
    """HTTP address: the path of a Unix socket, or host:port."""
    process: str
    """Process id, or name of the pod."""
    start_time: datetime
    ready_since: float | None = None
    """Monotonic time at which the engine became ready; None if it never was."""
    exit: EngineExit | None = None
    """Set if the phase is ENDED."""
    liveness: Liveness = Liveness.ALIVE
    liveness_message: str = ""
    """Why the engine is not ALIVE, for people."""
    admitted: bool = True
    """Whether the cluster has been told that the engine gets requests; true where there is no cluster."""
    restarts: int = 0
    """Times that the cluster has started the engine again."""
    problem_reason: str = ""
    """Why an engine that should start does not, in CamelCase; empty if nothing speaks against it."""
    problem: str = ""
    """The same for people."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Spec with which an engine is started."""

    server_uuid: str
    replica: int
    spec_hash: str
    model_path: str
    alias: str
    http_threads: int
    model_context: int = 0
    """Number of tokens that the model was trained for; 0 if unknown."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """ProtoJSON of RuntimeParameters."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The file of each model that a parameter names, by the parameter's name."""
    adapter_paths: Mapping[str, str] = field(default_factory=dict)
    """The LoRA adapters that the parameters name, by their names."""
    projector_path: str = ""
    """The model's projector; empty if none is to be loaded."""
    placement: Placement = field(default_factory=Placement)
    """Where it runs, on Kubernetes."""
    objects: Sequence[ModelObject] = ()
    """Where the files are found that are not on this machine."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Load of an engine."""

    busy: bool
    """See `llamesh.kit.occupancy`."""
    work_done: float
    """Increases with every request; comparable only with an earlier value of the same engine."""


class Runtime(Protocol):
    """What all places where engines run have in common: an `EngineRuntime` and a `WorkloadRuntime`."""

    @property
    def decides(self) -> bool:
        """Whether this controller decides when servers fall asleep; false for all but one of the controllers of a cluster."""

    async def open(self, on_change: Callable[[str], None], on_model_change: Callable[[str], None]) -> None:
        """Adopt the running engines. Afterwards call `on_change(server_uuid)` and `on_model_change(model_uuid)` on every change."""

    async def close(self) -> None:
        """Stop watching. The engines keep running."""

    async def stop_all(self, grace: float) -> None:
        """Stop every engine, by force after `grace` seconds, and wait until all are gone."""

    def memory(self) -> MachineMemory:
        """Return the memory for engines, a fraction of a second old at most."""

    def start_limit(self) -> int:
        """Return how many engines may start at the same time if no setting limits them."""

    def model(self, model_uuid: str) -> ModelFile:
        """Return the cached entry of a model's file, without waiting."""

    def locate(self, model_uuid: str) -> None:
        """Make a model's file available to engines. Returns at once; the result arrives through `on_model_change`."""

    def servers(self) -> Collection[str]:
        """Return the id of every server that has an engine here, declared or not."""

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """Return a server's engines, including those that ended and were not forgotten."""

    def forget(self, instance: str) -> None:
        """Remove the record and the files of an ended engine."""

    def end_server(self, server_uuid: str, grace: float) -> None:
        """Stop the engines of a server that is not declared, by force after `grace` seconds. Returns at once; idempotent."""

    async def load(self, instance: str) -> EngineLoad | None:
        """Return the load of an engine; None if it does not answer."""

    async def metrics(self, instance: str) -> bytes | None:
        """Return llama.cpp's metrics of an engine in Prometheus' text format; None if it does not answer. Raises OSError."""

    def read_log(self, server_uuid: str, replica: int, tail: int, *, follow: bool) -> AsyncIterator[Sequence[str]]:
        """Yield the last lines of a replica's log and, with `follow`, new lines as they come."""

    def drop_logs(self, server_uuid: str) -> None:
        """Remove the logs of a removed server."""


class EngineRuntime(Runtime, Protocol):
    """A place where the controller starts and stops each engine: the processes of this machine."""

    scales: Literal[False]

    async def start(self, spec: LaunchSpec) -> None:
        """Start an engine and return before it is ready. Never fails: an engine that cannot be started shows as ENDED."""

    def stop(self, instance: str, grace: float) -> None:
        """Stop an engine, by force after `grace` seconds. Returns at once; idempotent."""


class WorkloadRuntime(Runtime, Protocol):
    """A place that keeps a number of engines running and replaces them one after the other: the Deployments of a cluster."""

    scales: Literal[True]

    async def scale(self, spec: LaunchSpec, replicas: int, memory_bytes: int) -> None:
        """Let this number of engines run with a spec. `memory_bytes`: what one is expected to take; 0 if unknown. Idempotent."""

    async def admit(self, instance: str) -> None:
        """Tell the place that an engine gets requests, so that an old one may leave. Idempotent."""

    def nodes(self) -> Mapping[str, int]:
        """Return the bytes of memory for engines of each machine of the place by its name; none if they are not known yet."""

    def obstacle(self, server_uuid: str) -> str:
        """Return why the place does not take what a server needs; empty if it does."""


Place = EngineRuntime | WorkloadRuntime
"""Where engines run. `scales` says which of both it is."""
