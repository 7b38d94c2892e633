"""Where engines run. A runtime starts and ends single engines and says what there is; what should be is decided elsewhere.

Invariant: everything a runtime knows it can find again after the controller was killed; nothing that it does needs to be
remembered by the caller.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


class EnginePhase(enum.Enum):
    """Where an engine is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    """Told to end; finishes its running requests."""
    ENDED = "ended"


class Liveness(enum.Enum):
    """Whether an engine that was ready still lives."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    """It does not answer, or makes no progress: it gets no new requests until it does."""
    LOST = "lost"
    """Its address does not lead to it any more, so it can get no new requests; what it works on may still end well."""
    STUCK = "stuck"
    """It is past hope, and is being ended by force."""


CANNOT_START = "CannotStart"
"""The reason of an engine for which not even a process could be started: this machine is the cause, not the engine."""


@dataclass(frozen=True, slots=True)
class EngineExit:
    """How an engine ended."""

    reason: str
    """One word in CamelCase, for instance "OutOfMemory"."""
    message: str
    """For people."""
    requested: bool
    """It had been told to end: no failure."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine as it is now."""

    instance: str
    """Its name on this runtime, for instance "0f0c6a0e-00"."""
    server_uuid: str
    replica: int
    spec_hash: str
    """Of what it was started with; see `Order`."""
    phase: EnginePhase
    address: str
    """Where it answers HTTP: the path of a Unix socket, or host:port."""
    process: str
    """Process id, or name of the pod."""
    start_time: datetime
    ready_since: float | None = None
    """Seconds of the monotonic clock; None: it never was."""
    exit: EngineExit | None = None
    """Set where ENDED."""
    liveness: Liveness = Liveness.ALIVE
    liveness_message: str = ""
    """Why it is not ALIVE, for people."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What an engine is to be started with."""

    server_uuid: str
    replica: int
    spec_hash: str
    model_path: str
    alias: str
    http_threads: int
    model_context: int = 0
    """Tokens the model was trained for; 0: not known."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """ProtoJSON of RuntimeParameters."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The file of each model that a parameter names, by the parameter's name."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is."""

    busy: bool
    """See `llamesh.kit.occupancy`."""
    work_done: float
    """Grows with every request; comparable only with an earlier value of the same engine."""


class Runtime(Protocol):
    """What the reconciler needs of the place where engines run."""

    async def open(self, on_change: Callable[[str], None]) -> None:
        """Find the engines that run already, then call `on_change(server_uuid)` whenever one changes."""

    async def close(self) -> None:
        """Stop looking. The engines stay."""

    def servers(self) -> Collection[str]:
        """Every server that has an engine here, declared or not."""

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """A server's engines, the ended ones that are not forgotten included."""

    async def start(self, spec: LaunchSpec) -> None:
        """Start an engine. Returns before it is ready, and never fails: an engine that cannot even be started shows as ENDED."""

    def stop(self, instance: str, grace: float) -> None:
        """Tell an engine to end, by force after `grace` seconds. Returns at once; repeating it changes nothing."""

    def forget(self, instance: str) -> None:
        """Remove what is left of an ended engine."""

    async def load(self, instance: str) -> EngineLoad | None:
        """Ask an engine how busy it is; None where it does not say."""

    async def metrics(self, instance: str) -> bytes | None:
        """What llama.cpp counts in an engine, in Prometheus' text format; None if it does not answer. Raises OSError."""

    def read_log(self, server_uuid: str, replica: int, tail: int, *, follow: bool) -> AsyncIterator[Sequence[str]]:
        """The last lines of a replica's log, then, with `follow`, the new ones as they come."""

    def drop_logs(self, server_uuid: str) -> None:
        """Remove the logs of a server that is gone."""
