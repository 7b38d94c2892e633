"""Applies ServerChanges to a ServerSpec, the same way in the gateway, which checks the result, and in the controller, which stores it.

Invariant: both refuse a change of a server that the caller read in another version.
"""

from __future__ import annotations

from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec


def apply_changes(spec: ServerSpec, changes: ServerChanges) -> ServerSpec:
    """Return a copy of the spec in which every field that is set in `changes` has its new value; what means the default is unset.

    `changes.runtime_params` is the exception: the contract service parses it, and callers set `changes.parameters` to the result.
    """
    result = ServerSpec()
    result.CopyFrom(spec)
    for name in ("replicas", "metered", "model_name"):
        if changes.HasField(name):
            setattr(result, name, getattr(changes, name))
    for part in ("parameters", "idle_sleep", "wake_budget", "placement"):
        if changes.HasField(part):
            getattr(result, part).CopyFrom(getattr(changes, part))
    return clear_defaults(result)


def clear_defaults(spec: ServerSpec) -> ServerSpec:
    """Unset the durations of a spec that are zero, and an empty placement, and return it: it means the same, and a spec has one form."""
    for name in ("idle_sleep", "wake_budget"):
        if spec.HasField(name) and not getattr(spec, name).ToNanoseconds():
            spec.ClearField(name)
    if not spec.placement.ListFields():
        spec.ClearField("placement")
    return spec


def check_etag(present: str, etag: str) -> None:
    """Raise ETAG_MISMATCH if a server whose etag is `present` is not the version that the caller read. An empty `etag` matches all."""
    if etag not in ("", present):
        raise MeshError(
            Reason.ERROR_REASON_ETAG_MISMATCH,
            f"the server has changed: its etag is {present}, not {etag}",
            {"etag": present},
        )
