"""A declared server: the desired state as people and the controller have set it, and the errors about it.

Invariant: every change of a spec raises its generation by one, and the etag is the generation. The run state and the removal are no part
of the spec and leave the generation alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from controller.footprint import Footprint, of_one_engine
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.v1.server_pb2 import ServerSpec


class RunState(enum.StrEnum):
    """Whether the engines are to run, and if not, why."""

    AWAKE = "awake"
    ASLEEP_IDLE = "idle"
    """Asleep, because no request came for `idle_sleep`."""
    ASLEEP_REQUESTED = "asked"
    """Asleep, because someone said so."""


@dataclass(frozen=True, slots=True)
class DeclaredServer:
    """A declared server: the wish."""

    server_uuid: str
    spec: ServerSpec
    """Never to be changed in place."""
    generation: int
    owner: str
    requester: str
    """Whose request_id it is."""
    request_id: str
    """Empty: the call was not to be repeatable."""
    request_digest: str
    engine_memory_bytes: int
    """What one engine is expected to take; 0: not known."""
    shared_weights_bytes: int
    """The part of it that engines of the same model share."""
    run_state: RunState
    removing: bool
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """Changes with every change of the spec."""
        return str(self.generation)

    @property
    def footprint(self) -> Footprint:
        """What one engine takes of the machine's memory."""
        return of_one_engine(self.spec.model_uuid, self.engine_memory_bytes, self.shared_weights_bytes)

    @property
    def replicas(self) -> int:
        """Engines wanted while awake."""
        return self.spec.replicas or 1


def engines_to_run(replicas: int, run_state: RunState, removing: bool) -> int:
    """Return how many engines a server is to run now."""
    return 0 if removing or run_state is not RunState.AWAKE else replicas


def check_etag(present: DeclaredServer, etag: str) -> None:
    """Raise ETAG_MISMATCH if the caller read another version of the server. An empty etag matches every version."""
    if etag and etag != present.etag:
        raise MeshError(
            Reason.ERROR_REASON_ETAG_MISMATCH,
            f"the server has changed: its etag is {present.etag}, not {etag}",
            {"etag": present.etag},
        )


def check_repeated(first: DeclaredServer, request_digest: str) -> DeclaredServer:
    """The server of the first request with this id, if this is that request again. One of an older release has no digest."""
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
    """The error for a server that is not declared."""
    return MeshError(
        Reason.ERROR_REASON_SERVER_NOT_FOUND, f"no server has the id {server_uuid}", {"serverUuid": server_uuid}
    )
