"""A declared server: the desired state as callers and the controller have set it, and the errors about it.

Invariant: every change of a spec raises its generation by one, and the etag is the generation. The run state and the removal are not part
of the spec and do not change the generation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from controller.footprint import Footprint, of_one_engine
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.v1.server_pb2 import ServerSpec


class RunState(enum.StrEnum):
    """Whether the engines should run, and if not, why."""

    AWAKE = "awake"
    ASLEEP_IDLE = "idle"
    """The server sleeps because no request arrived for `idle_sleep`."""
    ASLEEP_REQUESTED = "asked"
    """The server sleeps because a caller requested it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the contract service says of a spec. A spec that is not accepted changes nothing that runs."""

    accepted: bool
    reason: str = "Accepted"
    """Reason in CamelCase."""
    message: str = "the contract allows it"
    """Explanation for people, with numbers."""
    known: bool = True
    """False: the contract service has not answered yet."""


ACCEPTED = Verdict(True)
"""The verdict about a server that was checked before it was declared."""


@dataclass(frozen=True, slots=True)
class DeclaredServer:
    """A declared server: its spec and its desired run state."""

    server_uuid: str
    spec: ServerSpec
    """The spec. To change it, replace it; never modify it in place."""
    generation: int
    owner: str
    requester: str
    """Id of the user who sent `request_id`."""
    request_id: str
    """Idempotency key of the call that declared the server; empty if the call had none."""
    request_digest: str
    engine_memory_bytes: int
    """Bytes of memory that one engine is expected to take; 0 if unknown."""
    shared_weights_bytes: int
    """Bytes of `engine_memory_bytes` that engines of the same model share."""
    run_state: RunState
    removing: bool
    create_time: datetime
    update_time: datetime
    verdict: Verdict = ACCEPTED

    @property
    def etag(self) -> str:
        """Version of the spec: changes with every change of the spec."""
        return str(self.generation)

    @property
    def footprint(self) -> Footprint:
        """The memory that one engine takes."""
        return of_one_engine(self.spec.model_uuid, self.engine_memory_bytes, self.shared_weights_bytes)

    @property
    def replicas(self) -> int:
        """Number of engines while the server is awake."""
        return self.spec.replicas or 1


class EngineMemory(NamedTuple):
    """What the contract service estimates for one engine, in bytes. Zeros: unknown."""

    total_bytes: int = 0
    shared_bytes: int = 0
    """The part of it that engines of the same model on one machine share."""


UNKNOWN_MEMORY = EngineMemory()


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a caller declares, and what the caller says about the call."""

    spec: ServerSpec
    owner: str
    memory: EngineMemory = UNKNOWN_MEMORY
    request_id: str = ""
    """Makes the call repeatable; empty if every call declares another server."""
    request_digest: str = ""
    """Digest of the request, which repetitions must have too."""
    owner_uid: str = ""
    """Id of the user, which stays the same if the name changes; empty in tokens from before users had ids."""

    @property
    def requester(self) -> str:
        """Who sent the request id."""
        return self.owner_uid or self.owner


def engines_to_run(replicas: int, run_state: RunState, removing: bool) -> int:
    """Return how many engines a server should run now."""
    return 0 if removing or run_state is not RunState.AWAKE else replicas


def check_repeated(first: DeclaredServer, request_digest: str) -> DeclaredServer:
    """Return the server that the first request with this id declared. Raises REQUEST_ID_REUSED if this is a different request.

    Servers that an older release declared have no digest, so their requests are not compared.
    """
    if request_digest and first.request_digest and request_digest != first.request_digest:
        why = "was used before, for another request"
        raise MeshError(
            Reason.ERROR_REASON_REQUEST_ID_REUSED,
            f"the request_id {first.request_id} {why}: it declared the server {first.server_uuid}",
            {"requestId": first.request_id, "serverUuid": first.server_uuid},
            (FieldViolation("request_id", why),),
        )
    return first


def not_found(server_uuid: str) -> MeshError:
    """Return the error for a server that is not declared."""
    return MeshError(
        Reason.ERROR_REASON_SERVER_NOT_FOUND, f"no server has the id {server_uuid}", {"serverUuid": server_uuid}
    )
